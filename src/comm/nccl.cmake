# NCCL for comm nccl, where backend cuda is built (kernels/cuda.cmake). Sets GROUTER_HAS_NCCL; with it comes target
# grouter_nccl. Header and library are the toolkit's, Debian's libnccl-dev, or those of the wheel nvidia-nccl-cu13
# (site-packages/nvidia/nccl); the library is not linked but loaded when it is needed (nccl_library.c). The headers
# (GROUTER_NCCL_INCLUDE, GROUTER_CUDART_INCLUDE) are enough for the tests on a stand-in for the library.
set(GROUTER_HAS_NCCL OFF)
set(GROUTER_WHEELS $ENV{VIRTUAL_ENV}/lib/python3*/site-packages /usr/local/lib/python3*/site-packages
  /usr/local/lib/python3*/dist-packages /usr/lib/python3*/site-packages /usr/lib/python3/dist-packages)
list(TRANSFORM GROUTER_WHEELS APPEND /nvidia/nccl OUTPUT_VARIABLE nccl_wheels)
list(TRANSFORM GROUTER_WHEELS APPEND /nvidia/cu13 OUTPUT_VARIABLE cuda_wheels)
file(GLOB nccl_wheels ${nccl_wheels})
file(GLOB cuda_wheels ${cuda_wheels})
find_path(GROUTER_CUDART_INCLUDE cuda_runtime.h HINTS ${GROUTER_CUDA_INCLUDE} ENV CUDA_HOME
  PATHS /usr/local/cuda ${cuda_wheels} PATH_SUFFIXES include DOC "header of the CUDA runtime")
find_path(GROUTER_NCCL_INCLUDE nccl.h HINTS ${GROUTER_CUDART_INCLUDE} PATHS ${nccl_wheels} PATH_SUFFIXES include
  DOC "header of NCCL")
find_library(GROUTER_NCCL NAMES nccl libnccl.so.2 HINTS ${GROUTER_CUDA_LIBRARY_DIR} PATHS ${nccl_wheels}
  PATH_SUFFIXES lib DOC "NCCL")
if(GROUTER_HAS_CUDA AND GROUTER_NCCL_INCLUDE AND GROUTER_NCCL)
  set(GROUTER_HAS_NCCL ON)
  add_library(grouter_nccl INTERFACE)
  target_include_directories(grouter_nccl SYSTEM INTERFACE ${GROUTER_NCCL_INCLUDE})
  target_compile_definitions(grouter_nccl INTERFACE GR_NCCL_LIBRARY="${GROUTER_NCCL}")
  target_link_libraries(grouter_nccl INTERFACE grouter_cuda ${CMAKE_DL_LIBS})
endif()
