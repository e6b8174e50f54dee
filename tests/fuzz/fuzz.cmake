# libFuzzer programs for every parser of files and the encoders, with seeds; included with MIXTRAL_FUZZ (clang only).
# `fuzz_run` gives each of them MIXTRAL_FUZZ_SECONDS.
set(MIXTRAL_FUZZ_SECONDS 10 CACHE STRING "Seconds for each target of fuzz_run")
set(MIXTRAL_SEEDS ${CMAKE_BINARY_DIR}/seeds)

add_executable(write_seeds EXCLUDE_FROM_ALL tests/fuzz/write_seeds.cpp)
target_link_libraries(write_seeds PRIVATE mixtral::mixtral doctest::doctest
                      nlohmann_json::nlohmann_json)
target_compile_definitions(write_seeds PRIVATE MIXTRAL_SOURCE_DIR="${CMAKE_CURRENT_SOURCE_DIR}")

add_library(fuzz_targets STATIC EXCLUDE_FROM_ALL tests/fuzz/targets.cpp examples/kernels.cpp)
target_link_libraries(fuzz_targets PUBLIC mixtral::mixtral nlohmann_json::nlohmann_json)
target_compile_definitions(fuzz_targets PRIVATE MIXTRAL_HEADERS_ONLY)
target_compile_options(fuzz_targets PRIVATE -fsanitize=fuzzer-no-link,address,undefined
                       -fno-sanitize-recover=all -O1 -g1)

add_custom_target(fuzz_run)
set_property(GLOBAL APPEND PROPERTY JOB_POOLS fuzzing=2)
foreach(target gguf encode safetensors torch_file json_config sentencepiece tokenizer_json grammar tools
       session)
  add_executable(fuzz_${target} EXCLUDE_FROM_ALL tests/fuzz/entry.cpp)
  target_compile_definitions(fuzz_${target} PRIVATE FUZZ_TARGET=${target})
  target_link_libraries(fuzz_${target} PRIVATE fuzz_targets)
  target_link_options(fuzz_${target} PRIVATE -fsanitize=fuzzer,address,undefined)
  add_custom_target(fuzz_run_${target}
    COMMAND write_seeds ${MIXTRAL_SEEDS}/${target}
    COMMAND fuzz_${target} -max_total_time=${MIXTRAL_FUZZ_SECONDS} -timeout=60 -rss_limit_mb=2048
            -max_len=131072 -print_final_stats=1 -artifact_prefix=${CMAKE_BINARY_DIR}/${target}-
            ${MIXTRAL_SEEDS}/${target}/${target}
    JOB_POOL fuzzing VERBATIM)
  add_dependencies(fuzz_run fuzz_run_${target})
endforeach()
