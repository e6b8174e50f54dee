// Per target: quantised weights times one token, as in decoding, or a few, where matmul_few-inl.hpp is not
// compiled (SVE and RVV, whose vectors are in no array).
//
// A vector goes along the columns of a row. For as many rows as a vector has lanes, the dots of a
// tile's eight blocks of 32 columns then change places, so that a row's sum is in one lane and runs
// over the blocks in their order, as in matmul_groups-inl.hpp: the results are the same bits.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// The sums of neighbours: those of `first`, then those of `second`.
HWY_INLINE VI32 add_neighbours(VI32 first, VI32 second) {
  const DI32 d;
  return hn::Add(hn::ConcatEven(d, second, first), hn::ConcatOdd(d, second, first));
}

// The sums of every 4 lanes of a, b, c and d: in this order, or (kGroupsInBlocks, where shuffles inside
// 128 bits are cheaper) first those of all four's first 128 bits, and so on.
#if HWY_ARCH_X86
constexpr bool kGroupsInBlocks = true;
#else
constexpr bool kGroupsInBlocks = false;
#endif
HWY_INLINE VI32 sums_of_4(VI32 a, VI32 b, VI32 c, VI32 d) {
  if (!kGroupsInBlocks) return add_neighbours(add_neighbours(a, b), add_neighbours(c, d));
  const DI32 d32;
  const hn::Repartition<std::int64_t, DI32> d64;
  const auto ab =
      hn::BitCast(d64, hn::Add(hn::InterleaveLower(d32, a, b), hn::InterleaveUpper(d32, a, b)));
  const auto cd =
      hn::BitCast(d64, hn::Add(hn::InterleaveLower(d32, c, d), hn::InterleaveUpper(d32, c, d)));
  return hn::Add(hn::BitCast(d32, hn::InterleaveLower(d64, ab, cd)),
                 hn::BitCast(d32, hn::InterleaveUpper(d64, ab, cd)));
}

// Of two results of sums_of_4, the sums with even numbers or (kOdd 1) those with odd ones.
template <int kOdd>
HWY_INLINE VI32 every_other(VI32 first, VI32 second) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  // Sum 4 * j + k of one result is in lane j + 4 * k.
  alignas(64) static constexpr std::int32_t kOrder[2][16] = {
      {0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27},
      {4, 12, 5, 13, 6, 14, 7, 15, 20, 28, 21, 29, 22, 30, 23, 31}};
  const auto order = hn::Load(DI32(), kOrder[kOdd]);
  return VI32{_mm512_permutex2var_epi32(first.raw, order.raw, second.raw)};
#elif HWY_TARGET == HWY_AVX2
  // Sum 2 * j + k is in lane j + 4 * k.
  const DI32 d;
  return kOdd ? hn::ConcatUpperUpper(d, second, first) : hn::ConcatLowerLower(d, second, first);
#else
  const DI32 d;
  return kOdd ? hn::ConcatOdd(d, second, first) : hn::ConcatEven(d, second, first);
#endif
}

// The sums of q over one half of 32 columns, for the blocks [i * n, (i + 1) * n) modulo 8.
HWY_INLINE VI32 load_q_sum(const std::int16_t* q_sum, std::size_t half, std::size_t i) {
  const hn::Rebind<std::int16_t, DI32> d;
  const std::size_t n = hn::Lanes(d);
  q_sum += half * kBlocksPerTile;
  const auto sums =
      n >= kBlocksPerTile ? hn::LoadDup128(d, q_sum) : hn::LoadU(d, q_sum + i * n % kBlocksPerTile);
  return hn::PromoteTo(DI32(), sums);
}

// Of `rows`, [row][block] for as many rows as there are lanes, vectors that each have a block.
HWY_INLINE void load_blocks(const float* rows, VF& b0, VF& b1, VF& b2, VF& b3, VF& b4, VF& b5,
                            VF& b6, VF& b7) {
  const DF d;
  const std::size_t n = hn::Lanes(d);
  b0 = hn::Load(d, rows), b1 = hn::Load(d, rows + n);
  b2 = hn::Load(d, rows + 2 * n), b3 = hn::Load(d, rows + 3 * n);
  b4 = hn::Load(d, rows + 4 * n), b5 = hn::Load(d, rows + 5 * n);
  b6 = hn::Load(d, rows + 6 * n), b7 = hn::Load(d, rows + 7 * n);
  // Taking all even elements before all odd ones turns the bits of an element's number by one place:
  // three times, and the block's number, which was below the row's, is above it.
  for (int turn = 0; turn < 3; ++turn) {
    const auto t0 = hn::ConcatOdd(d, b1, b0), t1 = hn::ConcatOdd(d, b3, b2);
    const auto t2 = hn::ConcatOdd(d, b5, b4), t3 = hn::ConcatOdd(d, b7, b6);
    b0 = hn::ConcatEven(d, b1, b0), b1 = hn::ConcatEven(d, b3, b2);
    b2 = hn::ConcatEven(d, b5, b4), b3 = hn::ConcatEven(d, b7, b6);
    b4 = t0, b5 = t1, b6 = t2, b7 = t3;
  }
}

// Adds one tile of as many rows as there are lanes, times one token.
template <class Kind>
HWY_INLINE VF multiply_tile_rows(const TileRows& rows, int zero_bits, const std::uint8_t* x,
                                 VF sum) {
  const DF df;
  const DI8 d8;
  const std::size_t n = hn::Lanes(df);
  const std::int8_t* x_q = tile_q(x);
  const std::int16_t* x_q_sum = tile_q_sum(x, 1);
  // The rows are one line of quads, of which vector i begins at quad i * n; so is the token.
  const auto dots = [&](std::size_t i) MIXTRAL_LAMBDA {
    return quad_dot<Kind::kSigned>(hn::Load(d8, rows.q + i * n * kQuad),
                                   hn::Load(d8, x_q + i * n * kQuad % kTile));
  };
  const auto dots_of_16 = [&](std::size_t i) MIXTRAL_LAMBDA {
    return sums_of_4(dots(4 * i), dots(4 * i + 1), dots(4 * i + 2), dots(4 * i + 3));
  };
  HWY_ALIGN float blocks[kBlocksPerTile * kMaxLanes];  // [row][block of 32 columns]
  const auto multiply = [&](std::size_t i, VI32 q_sum0, VI32 q_sum1) MIXTRAL_LAMBDA {
    const auto scale = [&](std::size_t half)
                           MIXTRAL_LAMBDA { return hn::Load(df, rows.scales[half] + i * n); };
    const auto offset = [&](std::size_t half) MIXTRAL_LAMBDA {
      return Kind::kOffset ? hn::Load(df, rows.offsets[half] + i * n) : hn::Zero(df);
    };
    const auto to_float = [&](VI32 dot, VI32 q_sum) MIXTRAL_LAMBDA {
      return hn::ConvertTo(df, hn::Sub(dot, zero_part<Kind>(q_sum, zero_bits)));
    };
    const auto dots_a = dots_of_16(2 * i), dots_b = dots_of_16(2 * i + 1);
    const auto even = every_other<0>(dots_a, dots_b);
    const auto odd = every_other<1>(dots_a, dots_b);
    if (Kind::kHalves) {
      const auto dot0 = to_float(even, q_sum0), dot1 = to_float(odd, q_sum1);
      const auto first = scaled_dot<Kind>(dot0, scale(0), offset(0), hn::ConvertTo(df, q_sum0));
      hn::Store(add_scaled_dot<Kind>(first, dot1, scale(1), offset(1), hn::ConvertTo(df, q_sum1)),
                df, blocks + i * n);
    } else {
      const auto q_sum = hn::Add(q_sum0, q_sum1);
      const auto dot = to_float(hn::Add(even, odd), q_sum);
      hn::Store(scaled_dot<Kind>(dot, scale(0), offset(0), hn::ConvertTo(df, q_sum)), df,
                blocks + i * n);
    }
  };
  // With 4 lanes it takes two vectors of `blocks` to get to the same columns again.
  const auto even0 = load_q_sum(x_q_sum, 0, 0), even1 = load_q_sum(x_q_sum, 1, 0);
  const auto odd0 = load_q_sum(x_q_sum, 0, 1), odd1 = load_q_sum(x_q_sum, 1, 1);
  for (std::size_t i = 0; i < 8; i += 2) {
    multiply(i, even0, even1);
    multiply(i + 1, odd0, odd1);
  }
  VF b0, b1, b2, b3, b4, b5, b6, b7;
  load_blocks(blocks, b0, b1, b2, b3, b4, b5, b6, b7);
  const float* scale = tile_scale(x, 1);
  sum = hn::MulAdd(b0, hn::Set(df, scale[0]), sum);
  sum = hn::MulAdd(b1, hn::Set(df, scale[1]), sum);
  sum = hn::MulAdd(b2, hn::Set(df, scale[2]), sum);
  sum = hn::MulAdd(b3, hn::Set(df, scale[3]), sum);
  sum = hn::MulAdd(b4, hn::Set(df, scale[4]), sum);
  sum = hn::MulAdd(b5, hn::Set(df, scale[5]), sum);
  sum = hn::MulAdd(b6, hn::Set(df, scale[6]), sum);
  return hn::MulAdd(b7, hn::Set(df, scale[7]), sum);
}

// As Kernels::matmul. Tokens share what was unpacked; `out` holds the sums as they grow.
template <class Kind>
void matmul_rows(const Matrix& w, const Unpacker& unpacker, std::size_t first_row,
                 std::size_t n_rows, const void* const* x, std::size_t n_tokens, float* out) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  TileRows rows;
  if (n_rows % n != 0) std::memset(&rows, 0, sizeof rows);
  for (std::size_t begin = 0; begin < n_rows; begin += n) {
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      // So many rows at a time are more than the hardware foresees: the tile after the next is fetched.
      unpacker.rows(w, first_row + begin, HWY_MIN(n, n_rows - begin), col,
                    unpacker.ahead(w, col, 2, n), rows);
      for (std::size_t t = 0; t < n_tokens; ++t) {
        const auto* tile = static_cast<const std::uint8_t*>(x[t]) + col / kTile * kTokenTileBytes;
        float* to = out + t * kMaxMatmulRows + begin;
        const VF sum = col == 0 ? hn::Zero(df) : hn::Load(df, to);
        hn::Store(multiply_tile_rows<Kind>(rows, unpacker.zero_bits, tile, sum), df, to);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
