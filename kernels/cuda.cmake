# The CUDA toolkit for option GROUTER_CUDA, and how kernels/*.cu are compiled. Sets GROUTER_CUDA_FOUND, the words of
# --version, and GROUTER_HAS_CUDA; with it come target grouter_cuda (headers and libraries for the C files of backend cuda
# and comm nccl), GROUTER_CUDA_LIBRARY_DIR (where another library of the toolkit would be) and grouter_compile_kernels.
#
# nvcc is called by commands of our own rather than by CMake's CUDA language: that one looks for the folders of an
# installed toolkit, and the same toolkit also comes as Python wheels (site-packages/nvidia/cu13).
set(GROUTER_HAS_CUDA OFF)
set(GROUTER_CUDA_FOUND "no: left out (GROUTER_CUDA=OFF)")
set(GROUTER_CUDA_MAJOR 13)

# AUTO goes on without, ON ends here.
function(grouter_cuda_absent why)
  if(GROUTER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "GROUTER_CUDA=ON: ${why}, or use AUTO")
  endif()
  set(GROUTER_CUDA_FOUND "no: ${why}" PARENT_SCOPE)
endfunction()

# Sets GROUTER_CUDA_ROOT where there is an nvcc; the folders of wheels are looked at last.
function(grouter_find_nvcc)
  file(GLOB wheels $ENV{VIRTUAL_ENV}/lib/python3*/site-packages/nvidia/cu13
    /usr/local/lib/python3*/site-packages/nvidia/cu13 /usr/local/lib/python3*/dist-packages/nvidia/cu13
    /usr/lib/python3*/site-packages/nvidia/cu13 /usr/lib/python3/dist-packages/nvidia/cu13)
  find_program(GROUTER_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda ${wheels} PATH_SUFFIXES bin
    DOC "compiler of kernels/")
  if(GROUTER_NVCC)
    get_filename_component(nvcc "${GROUTER_NVCC}" REALPATH)
    get_filename_component(bin "${nvcc}" DIRECTORY)
    get_filename_component(root "${bin}" DIRECTORY)
    set(GROUTER_CUDA_ROOT "${root}" PARENT_SCOPE)
  endif()
endfunction()

# Sets `missing` to the names of what is not there. Wheels have no library names without a version.
function(grouter_find_cuda_libraries)
  set(missing "")
  find_path(GROUTER_CUDA_INCLUDE cublasLt.h HINTS ${GROUTER_CUDA_ROOT} PATH_SUFFIXES include targets/x86_64-linux/include
    DOC "headers of the CUDA toolkit")
  if(NOT GROUTER_CUDA_INCLUDE)
    list(APPEND missing "cublasLt.h")
  endif()
  # cuBLAS is loaded when the backend is opened (src/backend/cuda_blas.c): here only its folder is looked for.
  find_library(GROUTER_CUDA_cudart NAMES cudart_static cudart libcudart.so.${GROUTER_CUDA_MAJOR} HINTS ${GROUTER_CUDA_ROOT}
    PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib DOC "CUDA runtime, static where that is there")
  find_library(GROUTER_CUDA_cublas NAMES cublas libcublas.so.${GROUTER_CUDA_MAJOR} HINTS ${GROUTER_CUDA_ROOT}
    PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib)
  foreach(library cudart cublas)
    if(NOT GROUTER_CUDA_${library})
      list(APPEND missing "lib${library}.so")
    endif()
  endforeach()
  set(missing "${missing}" PARENT_SCOPE)
endfunction()

if(NOT GROUTER_CUDA STREQUAL "OFF")
  grouter_find_nvcc()
  if(NOT GROUTER_SANITIZE STREQUAL "OFF")
    grouter_cuda_absent("left out of builds with sanitizers")
  elseif(NOT GROUTER_NVCC)
    grouter_cuda_absent("no nvcc found (install the CUDA toolkit or set CUDA_HOME)")
  else()
    grouter_find_cuda_libraries()
    if(missing)
      list(JOIN missing ", " missing)
      grouter_cuda_absent("nvcc is there, but not ${missing} (install them)")
    else()
      set(GROUTER_HAS_CUDA ON)
    endif()
  endif()
endif()

if(GROUTER_HAS_CUDA)
  execute_process(COMMAND ${GROUTER_NVCC} --version OUTPUT_VARIABLE text RESULT_VARIABLE status)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" matched "${text}")
  if(status OR NOT matched)
    message(FATAL_ERROR "${GROUTER_NVCC} --version: expected \"release N.N\", got: ${text}")
  endif()
  set(GROUTER_CUDA_FOUND "toolkit ${CMAKE_MATCH_1}, compiled for sm_80 and sm_90a")
  get_filename_component(GROUTER_CUDA_LIBRARY_DIR "${GROUTER_CUDA_cublas}" DIRECTORY)
  add_library(grouter_cuda INTERFACE)
  target_include_directories(grouter_cuda SYSTEM INTERFACE ${GROUTER_CUDA_INCLUDE})
  find_package(Threads REQUIRED)
  # libstdc++ for what nvcc puts around kernels; oneDNN brings it anyway.
  target_link_libraries(grouter_cuda INTERFACE ${GROUTER_CUDA_cudart} Threads::Threads ${CMAKE_DL_LIBS} rt stdc++)
  target_compile_definitions(grouter_cuda INTERFACE GR_CUDA_LIBRARY_DIR="${GROUTER_CUDA_LIBRARY_DIR}")
endif()

# SASS for both targets, and PTX of the older, which a driver compiles for GPUs that came later. No exceptions and no
# run-time types.
set(GROUTER_NVCC_FLAGS -std=c++17 -O3 -lineinfo --Werror all-warnings
  -Xcompiler=-Wall,-Wextra,-Werror,-fPIC,-fno-exceptions,-fno-rtti,-fstack-protector-strong,-g
  -I${CMAKE_SOURCE_DIR} -I${CMAKE_SOURCE_DIR}/include)

set(GROUTER_NVCC_SM80 -gencode arch=compute_80,code=sm_80 -gencode arch=compute_80,code=compute_80)
set(GROUTER_NVCC_SM90 -gencode arch=compute_90a,code=sm_90a)

# Sets `out` to the objects of all kernels/*.cu, each compiled once, on its own; those named wgmma* for sm_90a only, the one
# target that has their instructions.
function(grouter_compile_kernels out)
  file(GLOB kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*.cu)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/kernels)
  set(objects "")
  foreach(kernel ${kernels})
    get_filename_component(name ${kernel} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/kernels/${name}.cu.o)
    set(targets ${GROUTER_NVCC_SM80} ${GROUTER_NVCC_SM90})
    if(name MATCHES "^wgmma")
      set(targets ${GROUTER_NVCC_SM90})
    endif()
    add_custom_command(OUTPUT ${object} VERBATIM DEPENDS ${kernel} DEPFILE ${object}.d COMMENT "nvcc ${name}.cu"
      COMMAND ${GROUTER_NVCC} ${GROUTER_NVCC_FLAGS} ${targets} -MD -MF ${object}.d -MT ${object} -c ${kernel} -o ${object})
    list(APPEND objects ${object})
  endforeach()
  set(${out} "${objects}" PARENT_SCOPE)
endfunction()
