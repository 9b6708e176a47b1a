# cuDNN for option GROUTER_CUDNN, where backend cuda is built (kernels/cuda.cmake). Sets GROUTER_HAS_CUDNN and
# GROUTER_CUDNN_FOUND, the words of --version; with it comes target grouter_cudnn. Header and library are the toolkit's,
# Debian's, or those of the wheel nvidia-cudnn-cu13 (site-packages/nvidia/cudnn); the library is not linked but loaded
# when the backend is opened (cuda_cudnn_load.c), and need not be there when the program is built.
set(GROUTER_HAS_CUDNN OFF)
set(GROUTER_CUDNN_MAJOR 9)

# AUTO goes on without, ON ends here.
function(grouter_cudnn_absent why)
  if(GROUTER_CUDNN STREQUAL "ON")
    message(FATAL_ERROR "GROUTER_CUDNN=ON: ${why}, or use AUTO")
  endif()
  set(GROUTER_CUDNN_FOUND "no: ${why}" PARENT_SCOPE)
endfunction()

if(GROUTER_CUDNN STREQUAL "OFF")
  set(GROUTER_CUDNN_FOUND "no: left out (GROUTER_CUDNN=OFF)")
elseif(NOT GROUTER_HAS_CUDA)
  grouter_cudnn_absent("only with CUDA")
else()
  file(GLOB cudnn_wheels $ENV{VIRTUAL_ENV}/lib/python3*/site-packages/nvidia/cudnn
    /usr/local/lib/python3*/site-packages/nvidia/cudnn /usr/local/lib/python3*/dist-packages/nvidia/cudnn
    /usr/lib/python3*/site-packages/nvidia/cudnn /usr/lib/python3/dist-packages/nvidia/cudnn)
  find_path(GROUTER_CUDNN_INCLUDE cudnn_graph.h HINTS ${GROUTER_CUDA_INCLUDE} PATHS ${cudnn_wheels} PATH_SUFFIXES include
    DOC "headers of cuDNN")
  find_library(GROUTER_CUDNN_LIBRARY NAMES libcudnn.so.${GROUTER_CUDNN_MAJOR} HINTS ${GROUTER_CUDA_LIBRARY_DIR}
    PATHS ${cudnn_wheels} PATH_SUFFIXES lib DOC "cuDNN")
  if(GROUTER_CUDNN_INCLUDE)
    file(STRINGS ${GROUTER_CUDNN_INCLUDE}/cudnn_version.h lines REGEX "#define CUDNN_(MAJOR|MINOR|PATCHLEVEL) ")
    string(REGEX REPLACE "[^0-9;]" "" numbers "${lines}")
    string(REPLACE ";" "." version "${numbers}")
  endif()
  if(NOT GROUTER_CUDNN_INCLUDE)
    grouter_cudnn_absent("cudnn_graph.h not found (install cuDNN ${GROUTER_CUDNN_MAJOR})")
  elseif(version VERSION_LESS 9.8 OR NOT version VERSION_LESS 10)
    grouter_cudnn_absent("headers of ${version}, not of a 9 from 9.8 on (install cuDNN 9)")
  else()
    set(GROUTER_HAS_CUDNN ON)
    set(GROUTER_CUDNN_FOUND "${version}, for attention")
    set(library libcudnn.so.${GROUTER_CUDNN_MAJOR})
    if(GROUTER_CUDNN_LIBRARY)
      set(library ${GROUTER_CUDNN_LIBRARY})
    endif()
    add_library(grouter_cudnn INTERFACE)
    target_include_directories(grouter_cudnn SYSTEM INTERFACE ${GROUTER_CUDNN_INCLUDE})
    target_compile_definitions(grouter_cudnn INTERFACE GR_CUDNN_LIBRARY="${library}")
  endif()
endif()
