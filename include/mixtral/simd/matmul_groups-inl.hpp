// Per target: quantised weights times many tokens, as in prompts.
//
// A vector goes along the tokens of a group, so four weights of a row are the same in all lanes and
// nothing has to be summed across lanes. A tile of 32 rows is unpacked once for all the tokens.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

HWY_INLINE VI8 broadcast_quad(const std::int8_t* q) {
  std::int32_t four;
  std::memcpy(&four, q, kQuad);
  return hn::BitCast(DI8(), hn::Set(DI32(), four));
}

// Adds one tile of 4 rows times two groups (kGroups 2), or of 8 rows times one, to the sums, of which
// there is a vector for each row.
template <class Kind, std::size_t kGroups>
HWY_INLINE void multiply_tile_block(const TileRows& rows, std::size_t first_row, int zero,
                                    const std::uint8_t* x_a, const std::uint8_t* x_b, float* sums_a,
                                    float* sums_b) {
  const DF df;
  const DI8 d8;
  const DI32 d32;
  const std::size_t n = hn::Lanes(df);
  const hn::Rebind<std::int16_t, DI32> d16;
  const auto minus_zero = hn::Set(d32, -zero);
  constexpr bool kTwo = kGroups == 2;
  const std::int8_t* q = rows.q + first_row * kTile;
  // Of accumulator i: its row, and where its sums are.
  const auto row = [](std::size_t i) { return kTwo ? i / 2 : i; };
  const auto is_b = [](std::size_t i) { return kTwo && i % 2 == 1; };
  const auto sums = [&](std::size_t i)
                        MIXTRAL_LAMBDA { return (is_b(i) ? sums_b : sums_a) + row(i) * n; };
  VF s0 = hn::Load(df, sums(0)), s1 = hn::Load(df, sums(1));
  VF s2 = hn::Load(df, sums(2)), s3 = hn::Load(df, sums(3));
  VF s4 = hn::Load(df, sums(4)), s5 = hn::Load(df, sums(5));
  VF s6 = hn::Load(df, sums(6)), s7 = hn::Load(df, sums(7));
  VI32 d0, d1, d2, d3, d4, d5, d6, d7;
  const auto dots = [&](std::size_t first_quad, VI32 q_sum_a, VI32 q_sum_b) MIXTRAL_LAMBDA {
    d0 = hn::Mul(q_sum_a, minus_zero), d1 = kTwo ? hn::Mul(q_sum_b, minus_zero) : d0;
    d2 = d0, d3 = d1, d4 = d0, d5 = d1, d6 = d0, d7 = d1;
    MIXTRAL_UNROLL
    for (std::size_t i = 0; i < (Kind::kHalves ? 4 : 8); ++i) {
      const std::size_t quad = first_quad + i;
      const auto xa = hn::Load(d8, tile_q(x_a) + quad * n * kQuad);
      const auto xb = kTwo ? hn::Load(d8, tile_q(x_b) + quad * n * kQuad) : xa;
      const auto w = [&](std::size_t j) MIXTRAL_LAMBDA {
        return broadcast_quad(q + row(j) * kTile + quad * kQuad);
      };
      d0 = quad_dot_add<Kind::kSigned>(d0, w(0), xa);
      d1 = quad_dot_add<Kind::kSigned>(d1, w(1), xb);
      d2 = quad_dot_add<Kind::kSigned>(d2, w(2), xa);
      d3 = quad_dot_add<Kind::kSigned>(d3, w(3), xb);
      d4 = quad_dot_add<Kind::kSigned>(d4, w(4), xa);
      d5 = quad_dot_add<Kind::kSigned>(d5, w(5), xb);
      d6 = quad_dot_add<Kind::kSigned>(d6, w(6), xa);
      d7 = quad_dot_add<Kind::kSigned>(d7, w(7), xb);
    }
  };
  for (std::size_t block = 0; block < kBlocksPerTile; ++block) {
    const auto q_sum = [&](const std::uint8_t* x, std::size_t half) MIXTRAL_LAMBDA {
      const std::int16_t* from = tile_q_sum(x, n) + (half * kBlocksPerTile + block) * n;
      return hn::PromoteTo(d32, hn::LoadU(d16, from));
    };
    const auto scale = [&](std::size_t i, std::size_t half) MIXTRAL_LAMBDA {
      return hn::Set(df, rows.scales[half][(first_row + row(i)) * kBlocksPerTile + block]);
    };
    const auto offset = [&](std::size_t i, std::size_t half) MIXTRAL_LAMBDA {
      const std::size_t at = (first_row + row(i)) * kBlocksPerTile + block;
      return Kind::kOffset ? hn::Set(df, rows.offsets[half][at]) : hn::Zero(df);
    };
    const auto a0 = q_sum(x_a, 0), a1 = q_sum(x_a, 1);
    const auto b0 = kTwo ? q_sum(x_b, 0) : a0, b1 = kTwo ? q_sum(x_b, 1) : a1;
    const auto xa = hn::Load(df, tile_scale(x_a, n) + block * n);
    const auto xb = kTwo ? hn::Load(df, tile_scale(x_b, n) + block * n) : xa;
    const std::size_t quad = block * 8;
    if (Kind::kHalves) {
      dots(quad, a0, b0);
      const auto first = [&](VI32 dot, std::size_t i) MIXTRAL_LAMBDA {
        return scaled_dot<Kind>(dot, scale(i, 0), offset(i, 0), is_b(i) ? b0 : a0);
      };
      const auto u0 = first(d0, 0), u1 = first(d1, 1), u2 = first(d2, 2), u3 = first(d3, 3);
      const auto u4 = first(d4, 4), u5 = first(d5, 5), u6 = first(d6, 6), u7 = first(d7, 7);
      dots(quad + 4, a1, b1);
      const auto add = [&](VF& sum, VF u, VI32 dot, std::size_t i) MIXTRAL_LAMBDA {
        u = add_scaled_dot<Kind>(u, dot, scale(i, 1), offset(i, 1), is_b(i) ? b1 : a1);
        sum = hn::MulAdd(u, is_b(i) ? xb : xa, sum);
      };
      add(s0, u0, d0, 0), add(s1, u1, d1, 1), add(s2, u2, d2, 2), add(s3, u3, d3, 3);
      add(s4, u4, d4, 4), add(s5, u5, d5, 5), add(s6, u6, d6, 6), add(s7, u7, d7, 7);
    } else {
      const auto a = hn::Add(a0, a1), b = kTwo ? hn::Add(b0, b1) : a;
      dots(quad, a, b);
      const auto add = [&](VF& sum, VI32 dot, std::size_t i) MIXTRAL_LAMBDA {
        const auto u = scaled_dot<Kind>(dot, scale(i, 0), offset(i, 0), is_b(i) ? b : a);
        sum = hn::MulAdd(u, is_b(i) ? xb : xa, sum);
      };
      add(s0, d0, 0), add(s1, d1, 1), add(s2, d2, 2), add(s3, d3, 3);
      add(s4, d4, 4), add(s5, d5, 5), add(s6, d6, 6), add(s7, d7, 7);
    }
  }
  hn::Store(s0, df, sums(0)), hn::Store(s1, df, sums(1));
  hn::Store(s2, df, sums(2)), hn::Store(s3, df, sums(3));
  hn::Store(s4, df, sums(4)), hn::Store(s5, df, sums(5));
  hn::Store(s6, df, sums(6)), hn::Store(s7, df, sums(7));
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
  TileRows rows;
  if (n_rows < n_padded) std::memset(&rows, 0, sizeof rows);
  std::memset(out, 0, n_groups * group_sums * sizeof(float));
  for (std::size_t col = 0; col < w.cols; col += kTile) {
    unpacker.rows(w, first_row, n_rows, kMaxMatmulRows, col, rows);
    const auto multiply = [&](auto two, std::size_t g, std::size_t row) MIXTRAL_LAMBDA {
      constexpr std::size_t kGroups = decltype(two)::value ? 2 : 1;
      const std::uint8_t* x = groups + g * group_bytes + col / kTile * kTokenTileBytes * n;
      float* sums = out + g * group_sums + row * n;
      multiply_tile_block<Kind, kGroups>(rows, row, unpacker.zero, x,
                                         kGroups == 2 ? x + group_bytes : x, sums,
                                         kGroups == 2 ? sums + group_sums : sums);
    };
    std::size_t g = 0;
    for (; g + 2 <= n_groups; g += 2) {
      for (std::size_t row = 0; row < n_padded; row += 4) multiply(std::true_type(), g, row);
    }
    if (g < n_groups) {
      for (std::size_t row = 0; row < n_padded; row += 8) multiply(std::false_type(), g, row);
    }
  }
  // A group's tokens and rows change places.
  HWY_ALIGN float sums[kMaxMatmulRows * 16];
  for (std::size_t g = 0; g < n_groups; ++g) {
    std::memcpy(sums, out + g * group_sums, group_sums * sizeof(float));
    for (std::size_t t = 0; t < n; ++t) {
      float* to = out + g * group_sums + t * kMaxMatmulRows;
      for (std::size_t r = 0; r < n_rows; ++r) to[r] = sums[r * n + t];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
