# The tests; included by the top-level CMakeLists.txt.
find_package(doctest QUIET)
if(NOT TARGET doctest::doctest)
  mixtral_fetch(doctest https://github.com/doctest/doctest.git v2.4.11)
endif()

# The library, header by header: one program, a test for each file.
set(MIXTRAL_TESTS "*" CACHE STRING "Which files of tests to build: their names up to _test.cpp")
list(TRANSFORM MIXTRAL_TESTS PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/tests/ OUTPUT_VARIABLE MIXTRAL_TEST_FILES)
list(TRANSFORM MIXTRAL_TEST_FILES APPEND _test.cpp)
file(GLOB MIXTRAL_TEST_FILES CONFIGURE_DEPENDS ${MIXTRAL_TEST_FILES})
add_executable(mixtral_tests tests/main.cpp ${MIXTRAL_TEST_FILES})
target_link_libraries(mixtral_tests PRIVATE mixtral_program doctest::doctest)
target_compile_definitions(mixtral_tests PRIVATE MIXTRAL_SOURCE_DIR="${CMAKE_CURRENT_SOURCE_DIR}")
target_precompile_headers(mixtral_tests PRIVATE <doctest/doctest.h> <nlohmann/json.hpp> <filesystem>
                          <functional> <random>)
set_source_files_properties(tests/main.cpp PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
foreach(file ${MIXTRAL_TEST_FILES})
  get_filename_component(name ${file} NAME_WE)
  add_test(NAME ${name} COMMAND mixtral_tests --source-file=*/${name}.cpp --test-suite-exclude=shared)
  if(name MATCHES "workspace|quantize")  # begin early, since they take longest
    set_tests_properties(${name} PROPERTIES COST 100)
  endif()
endforeach()
# The cases of all files that need ../shared are one test, which is skipped where that is not there. (Among
# those of some files alone there may be none.)
if(MIXTRAL_TESTS STREQUAL "*")
  add_test(NAME shared COMMAND mixtral_tests --test-suite=shared)
  set_tests_properties(shared PROPERTIES COST 100)
endif()

# What the block formats lose, in a table, and a full context beside its formulas: programs, not tests.
if(MIXTRAL_BUILD_EXAMPLES AND NOT MIXTRAL_SANITIZE)
  add_executable(long_context tests/long_context.cpp)
  target_include_directories(long_context PRIVATE examples)
  target_link_libraries(long_context PRIVATE mixtral_program CLI11::CLI11)
  add_executable(quantization_error tests/quantization_error.cpp)
  target_link_libraries(quantization_error PRIVATE mixtral_program CLI11::CLI11)
endif()

# Embedding: a host without exceptions and RTTI, of many translation units, among them each public
# header included alone, twice. With sanitizers it links what the programs do.
add_executable(embedding_host tests/embedding/host.cpp tests/embedding/host_other.cpp)
target_link_libraries(embedding_host PRIVATE mixtral::mixtral nlohmann_json::nlohmann_json
                      mixtral_options)
if(MIXTRAL_SANITIZE)
  target_link_libraries(embedding_host PRIVATE mixtral_implementation)
else()
  target_sources(embedding_host PRIVATE examples/implementation.cpp examples/kernels.cpp)
  file(GLOB MIXTRAL_PUBLIC_HEADERS CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR}/include
       ${CMAKE_CURRENT_SOURCE_DIR}/include/mixtral/*.hpp)
  list(REMOVE_ITEM MIXTRAL_PUBLIC_HEADERS mixtral/implementation.hpp)
  foreach(header ${MIXTRAL_PUBLIC_HEADERS})
    string(MAKE_C_IDENTIFIER ${header} unit)
    set(unit ${CMAKE_CURRENT_BINARY_DIR}/headers/${unit}.cpp)
    file(WRITE ${unit}.new "#include <${header}>\n#include <${header}>\n")
    configure_file(${unit}.new ${unit} COPYONLY)
    target_sources(embedding_host PRIVATE ${unit})
  endforeach()
endif()
set(MIXTRAL_EMBEDDED "$<${MIXTRAL_GNU}:-fno-exceptions;-fno-rtti;-O0;${MIXTRAL_OLDEST_TARGET}>")
target_compile_options(embedding_host PRIVATE ${MIXTRAL_EMBEDDED})

# The same host as one translation unit, whose first files include the header without its implementation; and
# another of the single headers.
if(NOT MIXTRAL_SANITIZE)
  add_executable(embedding_unity tests/embedding/host.cpp tests/embedding/host_other.cpp
                                 examples/implementation.cpp examples/kernels.cpp)
  set_target_properties(embedding_unity PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  target_link_libraries(embedding_unity PRIVATE mixtral::mixtral nlohmann_json::nlohmann_json mixtral_options)
  target_compile_options(embedding_unity PRIVATE ${MIXTRAL_EMBEDDED})

  add_executable(embedding_single tests/embedding/optional_headers.cpp)
  target_include_directories(embedding_single BEFORE PRIVATE single_include)
  target_compile_definitions(embedding_single PRIVATE MIXTRAL_HEADERS_ONLY)
  target_link_libraries(embedding_single PRIVATE mixtral::mixtral nlohmann_json::nlohmann_json mixtral_options)
  target_compile_options(embedding_single PRIVATE ${MIXTRAL_EMBEDDED})
endif()

# What only a look from outside can tell: output, exit codes, the README's snippets, staleness.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  add_test(NAME single_include COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tests/amalgamate.py --check)
  if(MIXTRAL_SANITIZE)
    set(MIXTRAL_SANITIZED --sanitized)
  endif()
  add_test(NAME embedding COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tests/embedding.py
           ${MIXTRAL_SANITIZED} --bin $<TARGET_FILE_DIR:embedding_host>
           --library $<TARGET_FILE:mixtral_implementation>
           --compiler ${CMAKE_CXX_COMPILER}
           --include "$<TARGET_PROPERTY:mixtral_implementation,INCLUDE_DIRECTORIES>" COMMAND_EXPAND_LISTS)
  # Snippets are run, and what it says of programs compared, where all is built as the README says.
  if(UNIX AND NOT MIXTRAL_SANITIZE)
    set(MIXTRAL_README_RUNS --library $<TARGET_FILE:mixtral_implementation> --link $<TARGET_FILE:hwy::hwy>)
    if(MIXTRAL_BUILD_EXAMPLES)
      list(APPEND MIXTRAL_README_RUNS --bin $<TARGET_FILE_DIR:complete>)
    endif()
  endif()
  get_target_property(MIXTRAL_EIGEN_DIRS Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
  get_target_property(MIXTRAL_HWY_DIRS hwy::hwy INTERFACE_INCLUDE_DIRECTORIES)
  add_test(NAME readme COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tests/readme.py
           --compiler ${CMAKE_CXX_COMPILER} --include ${MIXTRAL_EIGEN_DIRS} ${MIXTRAL_HWY_DIRS}
           ${MIXTRAL_README_RUNS})
  if(MIXTRAL_BUILD_EXAMPLES)
    if(NOT TARGET embed_minimal)
      set(MIXTRAL_WITHOUT --without embed_minimal)
    endif()
    # In parts, so that the cores of a machine share the longest of all tests.
    foreach(part RANGE 1 4)
      add_test(NAME programs_${part}
               COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tests/programs.py --part ${part}/4
               --bin $<TARGET_FILE_DIR:embedding_host> ${MIXTRAL_WITHOUT})
      set_tests_properties(programs_${part} PROPERTIES COST 1000)
    endforeach()
    if(MIXTRAL_INSTALL AND UNIX AND NOT MIXTRAL_SANITIZE)
      add_test(NAME installed COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tests/installed.py
               --compiler ${CMAKE_CXX_COMPILER} --library $<TARGET_FILE:mixtral_implementation>
               -- ${CMAKE_COMMAND} --install ${CMAKE_BINARY_DIR} --prefix)
    endif()
  endif()
else()
  message(WARNING "mixtral: without Python 3, the tests of programs, embedding and README are left out")
endif()

# No test hangs for ever: each has many times what it takes on two busy cores. Test cases and what the tests
# in Python start have limits of their own, which are shorter and tell more. With 77 mixtral_tests says that
# all it was to run was skipped.
get_property(MIXTRAL_ALL_TESTS DIRECTORY PROPERTY TESTS)
if(MIXTRAL_SANITIZE)
  set(MIXTRAL_TEST_SECONDS 7200)
else()
  set(MIXTRAL_TEST_SECONDS 1200)
endif()
set_tests_properties(${MIXTRAL_ALL_TESTS} PROPERTIES TIMEOUT ${MIXTRAL_TEST_SECONDS} SKIP_RETURN_CODE 77)
