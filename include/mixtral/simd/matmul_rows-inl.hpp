// Per target: quantised weights times one token, as in decoding, or a few.
//
// A vector goes along the rows of a part: four columns of each, times the same four of a token in all
// lanes, so that nothing has to be summed across lanes. A row's sum runs over the blocks of 32 columns
// in their order, as in matmul_groups-inl.hpp: the results are the same bits.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Whether one token has code of its own, and a few: not where there are no arrays of vectors, nor for old
// CPUs, which are not worth what it takes to compile. (Differ between targets.)
#undef MIXTRAL_TOKEN_DOTS
#undef MIXTRAL_FEW_DOTS
#if HWY_HAVE_SCALABLE || HWY_TARGET == HWY_SSSE3 || (HWY_ARCH_X86 && HWY_TARGET == HWY_AVX3)
#define MIXTRAL_TOKEN_DOTS 0
#else
#define MIXTRAL_TOKEN_DOTS 1
#endif
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2 && HWY_TARGET != HWY_AVX3
#define MIXTRAL_FEW_DOTS 1
#else
#define MIXTRAL_FEW_DOTS 0
#endif

// With 32 registers, six tokens at a time share what was unpacked, with 16 four.
constexpr bool kSixTokens = HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL;

// Measured: groups cost the same if there are fewer tokens than lanes, and as much as code for a few
// tokens for nearly twice as many.
constexpr std::size_t kMinGroupedTokens = kSixTokens ? 29 : hn::MaxLanes(DF()) > 4 ? 14 : 6;
// So many share what was unpacked, or come one after the other while it is in the first caches.
constexpr std::size_t kMaxFewTokens = kSixTokens ? kMinGroupedTokens - 1 : kMaxLanes;

// Tiles of Q8_0 that are copied and have 16 rows are so long that, read from front to back and two at a time,
// hardware alone fetches them best (measured for one token: 1.2 times as fast).
template <class Format>
constexpr bool kReadInOrder = kSixTokens&& std::is_same_v<Format, Q8_0>;

// Adds one tile of two parts of rows times kTokens tokens, 6 at most, to `out`, or begins with it.
template <std::size_t kTokens, class Kind, class Part, class Tokens>
HWY_NOINLINE void multiply_parts(Kind, const Part* parts, const Tokens tokens, bool begins,
                                 LaterTile& later, float* out) {
  const DF df;
  const DI32 d32;
  const DI8 d8;
  const std::size_t n = hn::Lanes(df), n_in_tile = tokens.n_in_tile();
  // Of token t: part 0, part 1. (Highway has no arrays of vectors.)
  const auto sum_at = [&](std::size_t t, std::size_t p)
                          MIXTRAL_LAMBDA { return out + t * kMaxMatmulRows + p * n; };
  const auto load_sum = [&](std::size_t t, std::size_t p) MIXTRAL_LAMBDA {
    return begins || t >= kTokens ? hn::Zero(df) : hn::Load(df, sum_at(t, p));
  };
  VF s00 = load_sum(0, 0), s01 = load_sum(0, 1), s10 = load_sum(1, 0), s11 = load_sum(1, 1);
  VF s20 = load_sum(2, 0), s21 = load_sum(2, 1), s30 = load_sum(3, 0), s31 = load_sum(3, 1);
  VF s40 = load_sum(4, 0), s41 = load_sum(4, 1), s50 = load_sum(5, 0), s51 = load_sum(5, 1);
  constexpr std::size_t kStepBlocks = Part::kStepBlocks;
  // One half of a block, or all of it: block `in_step` of a step.
  const auto multiply = [&](std::size_t step, auto block_in_step,
                            auto half_of_block) MIXTRAL_LAMBDA {
    constexpr std::size_t kInStep = decltype(block_in_step)::value;
    constexpr std::size_t kHalf = decltype(half_of_block)::value;
    constexpr std::size_t kQuads = 8 / Kind::kHalves;
    const std::size_t block = step * kStepBlocks + kInStep;
    const auto begin = [&](std::size_t t) MIXTRAL_LAMBDA {
      const float* bits = tokens.at(t < kTokens ? t : 0).begin(kHalf, block, n_in_tile);
      return hn::BitCast(d32, hn::Set(df, *bits));
    };
    VI32 d00 = begin(0), d01 = d00, d10 = begin(1), d11 = d10;
    VI32 d20 = begin(2), d21 = d20, d30 = begin(3), d31 = d30;
    VI32 d40 = begin(4), d41 = d40, d50 = begin(5), d51 = d50;
    MIXTRAL_UNROLL
    for (std::size_t first = 0; first < kQuads; first += Kind::kNarrowQuads) {
      VI32 q00 = begin_quads<Kind>(d00), q01 = begin_quads<Kind>(d01);
      VI32 q10 = begin_quads<Kind>(d10), q11 = begin_quads<Kind>(d11);
      VI32 q20 = begin_quads<Kind>(d20), q21 = begin_quads<Kind>(d21);
      VI32 q30 = begin_quads<Kind>(d30), q31 = begin_quads<Kind>(d31);
      VI32 q40 = begin_quads<Kind>(d40), q41 = begin_quads<Kind>(d41);
      VI32 q50 = begin_quads<Kind>(d50), q51 = begin_quads<Kind>(d51);
      MIXTRAL_UNROLL
      for (std::size_t k = 0; k < Kind::kNarrowQuads; ++k) {
        const std::size_t i = kHalf * kQuads + first + k;
        const auto weights = [&](std::size_t p) MIXTRAL_LAMBDA {
          return in_register(hn::BitCast(d8, parts[p].template quad<kInStep>(step, i)));
        };
        const auto w0 = weights(0), w1 = weights(1);
        const auto add = [&](VI32& sum0, VI32& sum1, std::size_t t) MIXTRAL_LAMBDA {
          const auto x = in_register(broadcast_quad(tokens.at(t).quad(block * 8 + i, n_in_tile)));
          sum0 = add_quad<Kind>(sum0, w0, x);
          sum1 = add_quad<Kind>(sum1, w1, x);
        };
        add(q00, q01, 0);
        if (kTokens > 1) add(q10, q11, 1);
        if (kTokens > 2) add(q20, q21, 2);
        if (kTokens > 3) add(q30, q31, 3);
        if (kTokens > 4) add(q40, q41, 4);
        if (kTokens > 5) add(q50, q51, 5);
      }
      const auto end = [](VI32& dot0, VI32 sum0, VI32& dot1, VI32 sum1) MIXTRAL_LAMBDA {
        dot0 = end_quads<Kind>(dot0, sum0);
        dot1 = end_quads<Kind>(dot1, sum1);
      };
      end(d00, q00, d01, q01);
      if (kTokens > 1) end(d10, q10, d11, q11);
      if (kTokens > 2) end(d20, q20, d21, q21);
      if (kTokens > 3) end(d30, q30, d31, q31);
      if (kTokens > 4) end(d40, q40, d41, q41);
      if (kTokens > 5) end(d50, q50, d51, q51);
    }
    const auto add_one = [&](VF& sum, VI32 dot, std::size_t t, std::size_t p) MIXTRAL_LAMBDA {
      const auto number =
          hn::Sub(hn::BitCast(df, dot), hn::Set(df, *tokens.at(t).base(block, n_in_tile)));
      const auto offset = [&](std::size_t o) MIXTRAL_LAMBDA { return parts[p].offset(o, block); };
      const auto x_sum = [&](std::size_t o) MIXTRAL_LAMBDA {
        return hn::Set(df, *tokens.at(t).x_sum(o, block, n_in_tile));
      };
      sum = add_scaled_dot<Kind>(sum, number, parts[p].scale(kHalf, block), offset, x_sum);
    };
    const auto add = [&](VF& sum0, VI32 dot0, VF& sum1, VI32 dot1, std::size_t t) MIXTRAL_LAMBDA {
      add_one(sum0, dot0, t, 0);
      add_one(sum1, dot1, t, 1);
    };
    add(s00, d00, s01, d01, 0);
    if (kTokens > 1) add(s10, d10, s11, d11, 1);
    if (kTokens > 2) add(s20, d20, s21, d21, 2);
    if (kTokens > 3) add(s30, d30, s31, d31, 3);
    if (kTokens > 4) add(s40, d40, s41, d41, 4);
    if (kTokens > 5) add(s50, d50, s51, d51, 5);
  };
  for (std::size_t step = 0; step < kBlocksPerTile / kStepBlocks; ++step) {
    for_constants<kStepBlocks>([&](auto block) MIXTRAL_LAMBDA {
      later.fetch();
      for_constants<Kind::kHalves>([&](auto half) MIXTRAL_LAMBDA { multiply(step, block, half); });
    });
  }
  const auto store = [&](VF sum0, VF sum1, std::size_t t) MIXTRAL_LAMBDA {
    hn::Store(sum0, df, sum_at(t, 0));
    hn::Store(sum1, df, sum_at(t, 1));
  };
  store(s00, s01, 0);
  if (kTokens > 1) store(s10, s11, 1);
  if (kTokens > 2) store(s20, s21, 2);
  if (kTokens > 3) store(s30, s31, 3);
  if (kTokens > 4) store(s40, s41, 4);
  if (kTokens > 5) store(s50, s51, 5);
}

// The same for any number of tokens, four at a time, of which tokens_from(t) gives those from t on; what
// comes after the last one is of no use.
template <class Kind, class TokensFrom>
void multiply_tokens(Kind kind, const TilePart* parts, const TokensFrom& tokens_from,
                     std::size_t n_tokens, bool begins, LaterTile& later, float* out) {
  for (std::size_t t = 0; t < n_tokens; t += 4) {
    float* sums = out + t * kMaxMatmulRows;
    if (t + 1 == n_tokens) {
      multiply_parts<1>(kind, parts, tokens_from(t), begins, later, sums);
    } else {
      multiply_parts<4>(kind, parts, tokens_from(t), begins, later, sums);
    }
  }
}

// The tile at column `col` of each token, and of the last one again until there are n_prepared.
template <class Kind>
HWY_NOINLINE void prepare_tokens(const void* const* x, std::size_t n_tokens, std::size_t n_prepared,
                                 std::size_t col, int zero_bits, PreparedToken<Kind>* tokens) {
  for (std::size_t t = 0; t < n_prepared; ++t) {
    const auto* token = static_cast<const std::uint8_t*>(x[HWY_MIN(t, n_tokens - 1)]);
    tokens[t].set(token + col / kTile * kTokenTileBytes, zero_bits);
  }
}

// As Kernels::matmul, for kMaxFewTokens tokens at most, which share what was unpacked; `out` holds the sums
// as they grow.
template <class Kind>
void matmul_few(const Matrix& w, const Unpacker& unpacker, std::size_t first_row,
                std::size_t n_rows, const void* const* x, std::size_t n_tokens, float* out) {
  const std::size_t n = hn::Lanes(DF());
  const std::size_t n_fetches = 2 * kFetchesPerPart + kBlocksPerTile * ((n_tokens + 3) / 4);
  TileRows rows;
  PreparedToken<Kind> tokens[kMaxFewTokens];
  if (n_rows % (2 * n) != 0) std::memset(&rows, 0, sizeof rows);
  const TilePart parts[2] = {rows.part(0), rows.part(n)};
  for (std::size_t begin = 0; begin < n_rows; begin += 2 * n) {
    const std::size_t count = HWY_MIN(2 * n, n_rows - begin);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      LaterTile later(w, unpacker.tile_bytes, first_row + begin, count, col, n_fetches);
      unpack_rows(w, unpacker, first_row + begin, count, col, later, rows);
      prepare_tokens(x, n_tokens, (n_tokens + 3) / 4 * 4, col, unpacker.zero_bits, tokens);
      const auto from = [&](std::size_t t)
                            MIXTRAL_LAMBDA { return TokensAnywhere<Kind>(tokens + t); };
      multiply_tokens(Kind(), parts, from, n_tokens, col == 0, later, out + begin);
    }
  }
}

#if MIXTRAL_TOKEN_DOTS
// Whether the format multiplies the dots of halves of blocks with scales, before they become floats.
template <class Format, class = void>
constexpr bool kScalesDots = false;
template <class Format>
constexpr bool kScalesDots<Format, std::enable_if_t<Format::kScalesDots>> = true;

// What is multiplied for one token.
template <class Format, std::size_t block>
HWY_INLINE VU32 quad_of_one(const PackedPart<Format>& part, std::size_t step, std::size_t i) {
  if constexpr (kScalesDots<Format>) {
    return Format::template unscaled_quad<block>(part.rows(), step, i);
  } else {
    return part.template quad<block>(step, i);
  }
}

// Adds one tile of one part times one token to `sum`: all blocks of a step together, since they have bytes in
// common.
template <class Format>
HWY_INLINE VF multiply_one(VF sum, const PackedPart<Format>& part,
                           const TileTokens<DotKindOf<Format>>& token, LaterTile& later) {
  using Kind = DotKindOf<Format>;
  constexpr std::size_t kStepBlocks = Format::kStepBlocks, kHalves = Kind::kHalves;
  constexpr bool kScales = kScalesDots<Format>;
  constexpr std::size_t kQuadsTogether = kScales ? 4 : Kind::kNarrowQuads;
  const DF df;
  for (std::size_t step = 0; step < kBlocksPerTile / kStepBlocks; ++step) {
    later.fetch();
    const std::size_t first = step * kStepBlocks;
    VI32 dots[kStepBlocks * kHalves];  // [block][half]
    MIXTRAL_UNROLL
    for (std::size_t i = 0; i < kStepBlocks * kHalves; ++i) {
      const float* bits = token.begin(i % kHalves, first + i / kHalves, 1);
      dots[i] = hn::BitCast(DI32(), hn::Set(df, *bits));
    }
    MIXTRAL_UNROLL
    for (std::size_t begin = 0; begin < 8; begin += kQuadsTogether) {
      VI32* dots_of_half = dots + begin * kHalves / 8;
      VI32 sums[kStepBlocks];
      MIXTRAL_UNROLL
      for (std::size_t b = 0; b < kStepBlocks; ++b) {
        const VI32 dot = dots_of_half[b * kHalves];
        sums[b] = kScales ? hn::Zero(DI32()) : begin_quads<Kind>(dot);
      }
      MIXTRAL_UNROLL
      for (std::size_t k = begin; k < begin + kQuadsTogether; ++k) {
        // Nibbles of a byte together.
        const std::size_t i = kHalves == 1 && !kScales ? k % 2 * 4 + k / 2 : k;
        for_constants<kStepBlocks>([&](auto block) MIXTRAL_LAMBDA {
          constexpr std::size_t b = decltype(block)::value;
          const auto w = hn::BitCast(DI8(), quad_of_one<Format, b>(part, step, i));
          const auto x = broadcast_quad(token.quad((first + b) * 8 + i, 1));
          sums[b] = add_quad<Kind>(sums[b], w, x);
        });
      }
      for_constants<kStepBlocks>([&](auto block) MIXTRAL_LAMBDA {
        constexpr std::size_t b = decltype(block)::value;
        VI32& dot = dots_of_half[b * kHalves];
        if constexpr (kScales) {
          const auto scale = Format::template half_scale<b>(part.rows(), step, begin / 4);
          dot = add_scaled_quads(dot, sums[b], scale);
        } else {
          dot = end_quads<Kind>(dot, sums[b]);
        }
      });
    }
    MIXTRAL_UNROLL
    for (std::size_t i = 0; i < kStepBlocks * kHalves; ++i) {
      const std::size_t block = first + i / kHalves;
      const auto number = hn::Sub(hn::BitCast(df, dots[i]), hn::Set(df, *token.base(block, 1)));
      const auto offset = [&](std::size_t o) MIXTRAL_LAMBDA { return part.offset(o, block); };
      const auto x_sum = [&](std::size_t o)
                             MIXTRAL_LAMBDA { return hn::Set(df, *token.x_sum(o, block, 1)); };
      auto scale = part.scale(i % kHalves, block);
      if constexpr (kScales) scale = Format::unscaled_scale(scale, block);
      sum = add_scaled_dot<Kind>(sum, number, scale, offset, x_sum);
    }
  }
  return sum;
}

// As Kernels::matmul, for one token. Fewer rows at a time than for a few tokens, since memory is then
// read at fewer places at the same time.
template <class Format>
void matmul_one(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* x,
                float* out) {
  using Kind = DotKindOf<Format>;
  const DF df;
  const std::size_t n = hn::Lanes(df);
  PreparedTile<Kind, 1> token;
  PackedPart<Format> part;
  for (std::size_t begin = 0; begin < n_rows; begin += n) {
    const std::size_t row = first_row + begin, count = HWY_MIN(n, n_rows - begin);
    VF sum = hn::Zero(df);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      LaterTile later(w, kBytesPerTile<Format>, row, count, col,
                      kBlocksPerTile / Format::kStepBlocks);
      part.set(w, row, count, col);
      const auto* tile = static_cast<const std::uint8_t*>(x) + col / kTile * kTokenTileBytes;
      token.set(tile, 1, zero_bits_of(kZeroOf<Format>));
      sum = multiply_one<Format>(sum, part, token.from(0), later);
    }
    hn::Store(sum, df, out + begin);
  }
}
#endif

#if MIXTRAL_FEW_DOTS
// Formats that few files have are not worth the code that a few tokens take.
template <class Format>
constexpr bool kHasFewDots =
    !(Format::kByRow || std::is_same_v<Format, Q4_1> || std::is_same_v<Format, Q5_0> ||
      std::is_same_v<Format, Q5_1> || std::is_same_v<Format, Iq4_Nl>);

// As matmul_few, but what is unpacked is multiplied at once and not stored: by six tokens, four or three, or
// by four or two, with one more after the last if need be. For others it is unpacked anew. One token only where
// kReadInOrder.
template <class Format>
void matmul_packed(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                   std::size_t n_tokens, float* out) {
  using Kind = DotKindOf<Format>;
  const std::size_t n = hn::Lanes(DF());
  constexpr std::size_t kMost = kSixTokens ? 6 : 4, kFewest = kSixTokens ? 3 : 2;
  const std::size_t n_fours = (n_tokens + 3) / 4;
  const std::size_t n_fetches = kBlocksPerTile * (kSixTokens ? (n_tokens + 5) / 6 : n_fours);
  const std::size_t n_prepared = kSixTokens ? HWY_MIN(n_tokens + 1, kMaxFewTokens) : 4 * n_fours;
  PreparedToken<Kind> tokens[kMaxFewTokens];
  using Part =
      std::conditional_t<(Format::kStepBlocks > 2), PackedBlocks<Format>, PackedPart<Format>>;
  Part parts[2];
  for (std::size_t begin = 0; begin < n_rows; begin += 2 * n) {
    const std::size_t row = first_row + begin, count = HWY_MIN(2 * n, n_rows - begin);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      LaterTile later;
      if (n_tokens > 1) later = LaterTile(w, kBytesPerTile<Format>, row, count, col, n_fetches);
      for (std::size_t p = 0; p < 2; ++p) {
        const std::size_t skipped = count > n ? p * n : 0;  // or the same rows again, of no use
        parts[p].set(w, row + skipped, HWY_MIN(n, count - skipped), col);
      }
      prepare_tokens(x, n_tokens, n_prepared, col, zero_bits_of(kZeroOf<Format>), tokens);
      const auto multiply = [&](auto at_a_time, std::size_t t) MIXTRAL_LAMBDA {
        constexpr std::size_t kTokens = decltype(at_a_time)::value;
        multiply_parts<kTokens>(Kind(), parts, TokensApart<Kind>{tokens + t}, col == 0, later,
                                out + t * kMaxMatmulRows + begin);
        return kTokens;
      };
      if constexpr (kReadInOrder<Format>) {
        if (n_tokens == 1) {
          multiply(std::integral_constant<std::size_t, 1>(), 0);
          continue;
        }
      }
      for (std::size_t t = 0; t < n_tokens;) {
        const std::size_t left = n_tokens - t;
        if (kSixTokens && (left > 8 || left == 5 || left == 6)) {
          t += multiply(std::integral_constant<std::size_t, kMost>(), t);
        } else if (left > kFewest) {
          t += multiply(std::integral_constant<std::size_t, 4>(), t);
        } else {
          t += multiply(std::integral_constant<std::size_t, kFewest>(), t);
        }
      }
    }
  }
}
#endif

template <class Format>
void matmul_rows(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                 std::size_t n_tokens, float* out) {
#if MIXTRAL_TOKEN_DOTS
  if constexpr (!Format::kByRow) {
    const bool in_order = kReadInOrder<Format> && w.interleaved != 0;
    if (n_tokens == 1 && !in_order) return matmul_one<Format>(w, first_row, n_rows, x[0], out);
  }
#endif
  for (std::size_t t = 0; t < n_tokens; t += kMaxFewTokens) {
    const std::size_t n = HWY_MIN(kMaxFewTokens, n_tokens - t);
    float* sums = out + t * kMaxMatmulRows;
#if MIXTRAL_FEW_DOTS
    if constexpr (kHasFewDots<Format>) {
      matmul_packed<Format>(w, first_row, n_rows, x + t, n, sums);
      continue;
    }
#endif
    matmul_few<DotKindOf<Format>>(w, unpacker<Format>(), first_row, n_rows, x + t, n, sums);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
