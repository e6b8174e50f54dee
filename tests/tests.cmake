# The tests; included by the top-level CMakeLists.txt.
find_package(doctest QUIET)
if(NOT TARGET doctest::doctest)
  mixtral_fetch(doctest https://github.com/doctest/doctest.git v2.4.11)
endif()

file(GLOB MIXTRAL_TESTS CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tests/*_test.cpp)
add_executable(mixtral_tests tests/main.cpp ${MIXTRAL_TESTS})
target_link_libraries(mixtral_tests PRIVATE mixtral_implementation mixtral_options doctest::doctest
                      nlohmann_json::nlohmann_json)
target_compile_definitions(mixtral_tests PRIVATE MIXTRAL_SOURCE_DIR="${CMAKE_CURRENT_SOURCE_DIR}")
add_test(NAME mixtral_tests COMMAND mixtral_tests)
