// Whether the tests run under a sanitizer that makes them several times slower.
#ifndef MIXTRAL_TESTS_SANITIZED_HPP_
#define MIXTRAL_TESTS_SANITIZED_HPP_

#ifdef __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MIXTRAL_TESTS_SANITIZED
#endif
#endif

namespace support {

// Tests that are made of very many small steps take fewer then.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    defined(MIXTRAL_TESTS_SANITIZED)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

}  // namespace support

#endif  // MIXTRAL_TESTS_SANITIZED_HPP_
