// Per target: quantised weights times many tokens, as in prompts.
//
// A vector goes along the tokens of a group, so four weights of a row are the same in all lanes and
// nothing has to be summed across lanes. A tile of 32 rows is unpacked once for all the tokens.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// With 32 registers, three groups at a time hide the latency of the dot products better than two.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3 || HWY_ARCH_WASM
constexpr bool kThreeGroups = false;
#else
constexpr bool kThreeGroups = true;
#endif

HWY_INLINE VI8 broadcast_quad(const std::int8_t* q) {
  std::int32_t four;
  std::memcpy(&four, q, kQuad);
  return hn::BitCast(DI8(), hn::Set(DI32(), four));
}

// Adds one tile of 4 rows times two or three groups, or of 8 rows times one, to the sums, or begins
// them: there is a vector for each row; those of the next group are sums_stride further.
template <class Kind, std::size_t kGroups>
HWY_INLINE void multiply_tile_block(const TileRows& rows, std::size_t first_row, int zero,
                                    const std::uint8_t* x, std::size_t group_bytes, bool is_first,
                                    float* sums, std::size_t sums_stride) {
  const DF df;
  const DI8 d8;
  const DI32 d32;
  const std::size_t n = hn::Lanes(df);
  const hn::Rebind<std::int16_t, DI32> d16;
  const auto minus_zero = hn::Set(d32, -zero);
  const std::int8_t* q = rows.q + first_row * kTile;
  const std::uint8_t* x_b = kGroups > 1 ? x + group_bytes : x;
  const std::uint8_t* x_c = kGroups > 2 ? x_b + group_bytes : x;
  // Of accumulator i: its row, its group, and where its sums are.
  const auto row = [](std::size_t i) { return i / kGroups; };
  const auto of_group = [](std::size_t i, auto a, auto b, auto c) MIXTRAL_LAMBDA {
    return i % kGroups == 0 ? a : i % kGroups == 1 ? b : c;
  };
  const auto sum_of = [&](std::size_t i)
                          MIXTRAL_LAMBDA { return sums + i % kGroups * sums_stride + row(i) * n; };
  constexpr bool kTwelve = kGroups == 3;
  const auto begin_sum = [&](std::size_t i) MIXTRAL_LAMBDA {
    return is_first ? hn::Zero(df) : hn::Load(df, sum_of(i));
  };
  VF s0 = begin_sum(0), s1 = begin_sum(1), s2 = begin_sum(2), s3 = begin_sum(3);
  VF s4 = begin_sum(4), s5 = begin_sum(5), s6 = begin_sum(6), s7 = begin_sum(7);
  VF s8 = s0, s9 = s0, s10 = s0, s11 = s0;
  if (kTwelve) s8 = begin_sum(8), s9 = begin_sum(9), s10 = begin_sum(10), s11 = begin_sum(11);
  VI32 d0, d1, d2, d3, d4, d5, d6, d7, d8_, d9, d10, d11;
  const auto dots = [&](std::size_t first_quad, VI32 a, VI32 b, VI32 c) MIXTRAL_LAMBDA {
    const auto begin_a = hn::Mul(a, minus_zero);
    const auto begin_b = kGroups > 1 ? hn::Mul(b, minus_zero) : begin_a;
    const auto begin_c = kGroups > 2 ? hn::Mul(c, minus_zero) : begin_a;
    const auto begin = [&](std::size_t i)
                           MIXTRAL_LAMBDA { return of_group(i, begin_a, begin_b, begin_c); };
    d0 = begin(0), d1 = begin(1), d2 = begin(2), d3 = begin(3);
    d4 = begin(4), d5 = begin(5), d6 = begin(6), d7 = begin(7);
    d8_ = begin(8), d9 = begin(9), d10 = begin(10), d11 = begin(11);
    MIXTRAL_UNROLL
    for (std::size_t i = 0; i < (Kind::kHalves ? 4 : 8); ++i) {
      const std::size_t quad = first_quad + i;
      const auto xa = hn::Load(d8, tile_q(x) + quad * n * kQuad);
      const auto xb = kGroups > 1 ? hn::Load(d8, tile_q(x_b) + quad * n * kQuad) : xa;
      const auto xc = kGroups > 2 ? hn::Load(d8, tile_q(x_c) + quad * n * kQuad) : xa;
      const auto add = [&](VI32& dot, std::size_t j) MIXTRAL_LAMBDA {
        const auto w = broadcast_quad(q + row(j) * kTile + quad * kQuad);
        dot = quad_dot_add<Kind::kSigned>(dot, w, of_group(j, xa, xb, xc));
      };
      add(d0, 0), add(d1, 1), add(d2, 2), add(d3, 3);
      add(d4, 4), add(d5, 5), add(d6, 6), add(d7, 7);
      if (kTwelve) add(d8_, 8), add(d9, 9), add(d10, 10), add(d11, 11);
    }
  };
  for (std::size_t block = 0; block < kBlocksPerTile; ++block) {
    const auto q_sum = [&](const std::uint8_t* from, std::size_t half) MIXTRAL_LAMBDA {
      return hn::PromoteTo(
          d32, hn::Load(d16, tile_q_sum(from, n) + (half * kBlocksPerTile + block) * n));
    };
    const auto scale = [&](std::size_t i, std::size_t half) MIXTRAL_LAMBDA {
      return hn::Set(df, rows.scales[half][(first_row + row(i)) * kBlocksPerTile + block]);
    };
    const auto offset = [&](std::size_t i, std::size_t half) MIXTRAL_LAMBDA {
      const std::size_t at = (first_row + row(i)) * kBlocksPerTile + block;
      return Kind::kOffset ? hn::Set(df, rows.offsets[half][at]) : hn::Zero(df);
    };
    const auto x_scale = [&](const std::uint8_t* from) MIXTRAL_LAMBDA {
      return hn::Load(df, tile_scale(from, n) + block * n);
    };
    const auto a0 = q_sum(x, 0), a1 = q_sum(x, 1);
    const auto b0 = kGroups > 1 ? q_sum(x_b, 0) : a0, b1 = kGroups > 1 ? q_sum(x_b, 1) : a1;
    const auto c0 = kGroups > 2 ? q_sum(x_c, 0) : a0, c1 = kGroups > 2 ? q_sum(x_c, 1) : a1;
    const auto xa = x_scale(x);
    const auto xb = kGroups > 1 ? x_scale(x_b) : xa;
    const auto xc = kGroups > 2 ? x_scale(x_c) : xa;
    const std::size_t quad = block * 8;
    if (Kind::kHalves) {
      dots(quad, a0, b0, c0);
      const auto first = [&](VI32 dot, std::size_t i) MIXTRAL_LAMBDA {
        return scaled_dot<Kind>(dot, scale(i, 0), offset(i, 0), of_group(i, a0, b0, c0));
      };
      const auto u0 = first(d0, 0), u1 = first(d1, 1), u2 = first(d2, 2), u3 = first(d3, 3);
      const auto u4 = first(d4, 4), u5 = first(d5, 5), u6 = first(d6, 6), u7 = first(d7, 7);
      VF u8 = u0, u9 = u0, u10 = u0, u11 = u0;
      if (kTwelve)
        u8 = first(d8_, 8), u9 = first(d9, 9), u10 = first(d10, 10), u11 = first(d11, 11);
      dots(quad + 4, a1, b1, c1);
      const auto add = [&](VF& sum, VF u, VI32 dot, std::size_t i) MIXTRAL_LAMBDA {
        u = add_scaled_dot<Kind>(u, dot, scale(i, 1), offset(i, 1), of_group(i, a1, b1, c1));
        sum = hn::MulAdd(u, of_group(i, xa, xb, xc), sum);
      };
      add(s0, u0, d0, 0), add(s1, u1, d1, 1), add(s2, u2, d2, 2), add(s3, u3, d3, 3);
      add(s4, u4, d4, 4), add(s5, u5, d5, 5), add(s6, u6, d6, 6), add(s7, u7, d7, 7);
      if (kTwelve) {
        add(s8, u8, d8_, 8), add(s9, u9, d9, 9), add(s10, u10, d10, 10), add(s11, u11, d11, 11);
      }
    } else {
      const auto a = hn::Add(a0, a1), b = hn::Add(b0, b1), c = hn::Add(c0, c1);
      dots(quad, a, b, c);
      const auto add = [&](VF& sum, VI32 dot, std::size_t i) MIXTRAL_LAMBDA {
        const auto u = scaled_dot<Kind>(dot, scale(i, 0), offset(i, 0), of_group(i, a, b, c));
        sum = hn::MulAdd(u, of_group(i, xa, xb, xc), sum);
      };
      add(s0, d0, 0), add(s1, d1, 1), add(s2, d2, 2), add(s3, d3, 3);
      add(s4, d4, 4), add(s5, d5, 5), add(s6, d6, 6), add(s7, d7, 7);
      if (kTwelve) add(s8, d8_, 8), add(s9, d9, 9), add(s10, d10, 10), add(s11, d11, 11);
    }
  }
  hn::Store(s0, df, sum_of(0)), hn::Store(s1, df, sum_of(1));
  hn::Store(s2, df, sum_of(2)), hn::Store(s3, df, sum_of(3));
  hn::Store(s4, df, sum_of(4)), hn::Store(s5, df, sum_of(5));
  hn::Store(s6, df, sum_of(6)), hn::Store(s7, df, sum_of(7));
  if (kTwelve) {
    hn::Store(s8, df, sum_of(8)), hn::Store(s9, df, sum_of(9));
    hn::Store(s10, df, sum_of(10)), hn::Store(s11, df, sum_of(11));
  }
}

// to[c * kMaxMatmulRows + r] = from[r * n + c] for r, c < n, where n is the number of lanes.
HWY_INLINE void transpose(const float* from, float* to) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  // Taking all even elements before all odd ones turns the bits of an element's number by one place;
  // as often as a row's number has bits, rows and columns have changed places.
  HWY_ALIGN float buffer[2][kMaxLanes * kMaxLanes];
  for (std::size_t bit = 1, side = 0; bit < n; bit *= 2, side ^= 1) {
    const bool last = bit * 2 >= n;
    float* target = last ? to : buffer[side];
    const std::size_t stride = last ? kMaxMatmulRows : n;
    for (std::size_t k = 0; k < n / 2; ++k) {
      const auto a = hn::Load(df, from + 2 * k * n);
      const auto b = hn::Load(df, from + (2 * k + 1) * n);
      hn::Store(hn::ConcatEven(df, b, a), df, target + k * stride);
      hn::Store(hn::ConcatOdd(df, b, a), df, target + (n / 2 + k) * stride);
    }
    from = target;
  }
}

// As Kernels::matmul_groups. `out` first holds the sums, [group][row][token], as they grow.
template <class Kind>
void matmul_groups_of(const Matrix& w, const Unpacker& unpacker, std::size_t first_row,
                      std::size_t n_rows, const std::uint8_t* groups, std::size_t n_tokens,
                      float* out) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  const std::size_t n_groups = (n_tokens + n - 1) / n;
  const std::size_t group_bytes = token_bytes(w.cols) * n;
  const std::size_t group_sums = kMaxMatmulRows * n;
  const std::size_t n_padded = (n_rows + 7) / 8 * 8;
  const std::size_t rows_per_fetch = (8 + n_groups) / n_groups;
  TileRows rows;
  if (n_rows < n_padded) std::memset(&rows, 0, sizeof rows);
  for (std::size_t col = 0; col < w.cols; col += kTile) {
    unpacker.rows(w, first_row, n_rows, col, 0, rows);
    // The next tile is fetched from memory little by little, between the products of this one.
    const std::uint8_t* next = w.data + first_row * w.row_bytes +
                               col / kTile * unpacker.tile_bytes +
                               unpacker.ahead(w, col, 1, kMaxMatmulRows);
    std::size_t n_fetched = 0;
    const auto fetch = [&] {
      for (std::size_t end = n_fetched + rows_per_fetch; n_fetched < end; ++n_fetched) {
        if (n_fetched == n_rows) return;
        for (std::size_t i = 0; i < unpacker.tile_bytes; i += 64) {
          hwy::Prefetch(next + n_fetched * w.row_bytes + i);
        }
      }
    };
    const auto multiply = [&](auto count, std::size_t g) MIXTRAL_LAMBDA {
      constexpr std::size_t kGroups = decltype(count)::value;
      const std::uint8_t* x = groups + g * group_bytes + col / kTile * kTokenTileBytes * n;
      for (std::size_t row = 0; row < n_padded; row += kGroups == 1 ? 8 : 4) {
        fetch();
        multiply_tile_block<Kind, kGroups>(rows, row, unpacker.zero, x, group_bytes, col == 0,
                                           out + g * group_sums + row * n, group_sums);
      }
    };
    for (std::size_t g = 0; g < n_groups;) {
      const std::size_t left = n_groups - g;
      if (kThreeGroups && left >= 3 && left != 4) {
        multiply(std::integral_constant < std::size_t, kThreeGroups ? 3 : 2 > (), g);
        g += 3;
      } else if (left >= 2) {
        multiply(std::integral_constant<std::size_t, 2>(), g);
        g += 2;
      } else {
        multiply(std::integral_constant<std::size_t, 1>(), g);
        g += 1;
      }
    }
  }
  // A group's tokens and rows change places.
  HWY_ALIGN float sums[kMaxMatmulRows * kMaxLanes];
  for (std::size_t g = 0; g < n_groups; ++g) {
    float* group = out + g * group_sums;
    std::memcpy(sums, group, group_sums * sizeof(float));
    for (std::size_t row = 0; row < kMaxMatmulRows; row += n) {
      transpose(sums + row * n, group + row);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
