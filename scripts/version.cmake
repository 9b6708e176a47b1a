# Writes version.h (only when it changes, so that builds stay incremental). The repository is named: a source archive
# unpacked inside another repository is not of that one's commit.
execute_process(COMMAND git --git-dir=${SOURCE}/.git --work-tree=${SOURCE} describe --always --dirty --abbrev=12
  OUTPUT_VARIABLE hash OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT hash)
  set(hash "unknown")
endif()
string(CONCAT text "#define GR_VERSION \"${VERSION}\"\n#define GR_GIT_HASH \"${hash}\"\n#define GR_CUDA_FOUND \"${CUDA}\"\n"
  "#define GR_CUDNN_FOUND \"${CUDNN}\"\n"
  "#define GR_COMPILER \"${COMPILER}\"\n#define GR_BUILD \"${BUILD}\"\n")
if(EXISTS ${OUT})
  file(READ ${OUT} old)
endif()
if(NOT "${old}" STREQUAL "${text}")
  file(WRITE ${OUT} "${text}")
endif()
