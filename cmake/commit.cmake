# Writes HEADER: the commit of SOURCE, with "-dirty" where tracked files were changed since, or
# "unknown" outside git. Run at every build, since commits don't configure again; a header that
# says so already keeps its time.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT commit)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${HEADER} CONTENT "#define KVQUANT_COMMIT \"${commit}\"\n")
