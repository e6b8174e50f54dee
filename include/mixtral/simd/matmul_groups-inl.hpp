// Per target: quantised weights times many tokens, as in prompts.
//
// A vector goes along the tokens of a group, so four weights of a row are the same in all lanes and
// nothing has to be summed across lanes. A tile of 32 rows is unpacked once for all the tokens. Tokens
// that are left over and do not fill a group are multiplied as a few are.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// So many groups are multiplied together; with 32 registers, three hide the latency of the dot products better than
// two, which have code of their own as well, except where code is to be small.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3 || HWY_ARCH_WASM
constexpr std::size_t kMostGroups = 2;
#else
constexpr std::size_t kMostGroups = 3;
#endif
constexpr std::size_t kFewestGroups = kSmallCode ? kMostGroups : 2;

// How many of n_left groups are multiplied together, none if they are so few that their tokens are multiplied as a
// few are, which takes as long as it would in one group.
constexpr std::size_t groups_together(std::size_t n_left) {
  if (n_left >= kMostGroups && (n_left != 4 || kFewestGroups == kMostGroups)) return kMostGroups;
  return n_left >= kFewestGroups ? kFewestGroups : 0;
}

// Quads as two words, of their even and odd bytes, for what is multiplied as numbers of 16 bits.
template <class Kind>
constexpr std::size_t kWordsOfQuad = Kind::kWide ? 2 : 1;

// Makes two such words of n_quads vectors of quads each.
HWY_INLINE void widen_quads(const void* quads, std::size_t n_quads, std::uint32_t* out) {
  const DI8 d;
  const std::size_t n = hn::Lanes(d);
  const auto* q = static_cast<const std::int8_t*>(quads);
  auto* to = reinterpret_cast<std::int8_t*>(out);
  for (std::size_t i = 0; i < n_quads; ++i, q += n, to += 2 * n) {
    const auto v = hn::Load(d, q);
    hn::Store(hn::BitCast(d, even_bytes(v)), d, to);
    hn::Store(hn::BitCast(d, odd_bytes(v)), d, to + n);
  }
}

// The tile of a group of tokens, with its quads as words.
template <class Kind>
class GroupTile {
 public:
  HWY_INLINE void set(const std::uint8_t* tile, std::size_t n, int zero_bits) {
    tokens_.set(tile, n, zero_bits);
    if (Kind::kWide) widen_quads(tokens().q, kQuadsPerTile, wide_);
  }
  HWY_INLINE TileTokens<Kind> tokens() const { return tokens_.from(0); }
  HWY_INLINE TokensAnywhere<Kind> tokens_from(std::size_t t) const { return {tokens_, t}; }
  // [quad][word][token]
  HWY_INLINE const std::int8_t* words() const {
    return Kind::kWide ? reinterpret_cast<const std::int8_t*>(wide_) : tokens().q;
  }

 private:
  PreparedTile<Kind, kMaxLanes> tokens_;
  HWY_ALIGN std::uint32_t wide_[Kind::kWide ? 2 * kQuadsPerTile * kMaxLanes : 1];
};

// Adds one tile of 4 rows times two or three groups to the sums: there is a vector for each row; those of the next
// group are sums_stride further. `words` are the rows' quads, [part][quad][word][row].
template <class Kind, std::size_t kGroups>
HWY_INLINE void multiply_tile_block(const TileRows& rows, const std::uint32_t* words,
                                    std::size_t first_row, const GroupTile<Kind>* groups,
                                    float* sums, std::size_t sums_stride) {
  const DF df;
  const DI8 d8;
  const DI32 d32;
  const std::size_t n = hn::Lanes(df);
  const std::size_t part = first_row / n, in_part = first_row % n;
  constexpr std::size_t kWords = kWordsOfQuad<Kind>;
  const std::uint32_t* q = words + part * n * kQuadsPerTile * kWords + in_part;
  const std::size_t first_scale = part * n * kBlocksPerTile + in_part;
  using Tokens = TileTokens<Kind>;
  const GroupTile<Kind>&tile_a = groups[0], &tile_b = groups[1], &tile_c = groups[kGroups - 1];
  const Tokens ga = tile_a.tokens(), gb = tile_b.tokens(), gc = tile_c.tokens();
  // Of dot i: its row, its group.
  const auto row = [](std::size_t i) { return i / kGroups; };
  const auto of_group = [](std::size_t i, auto a, auto b, auto c) MIXTRAL_LAMBDA {
    return i % kGroups == 0 ? a : i % kGroups == 1 ? b : c;
  };
  constexpr bool kTwelve = kGroups == 3;
  const auto sum_at = [&](std::size_t i)
                          MIXTRAL_LAMBDA { return sums + i % kGroups * sums_stride + row(i) * n; };
  const auto load_sum = [&](std::size_t i) MIXTRAL_LAMBDA {
    return i < 8 || kTwelve ? hn::Load(df, sum_at(i)) : hn::Zero(df);
  };
  VF s0 = load_sum(0), s1 = load_sum(1), s2 = load_sum(2), s3 = load_sum(3);
  VF s4 = load_sum(4), s5 = load_sum(5), s6 = load_sum(6), s7 = load_sum(7);
  VF s8 = load_sum(8), s9 = load_sum(9), s10 = load_sum(10), s11 = load_sum(11);
  for (std::size_t step = 0; step < kBlocksPerTile * Kind::kHalves; ++step) {
    const std::size_t block = step / Kind::kHalves, half = step % Kind::kHalves;
    const auto begin = [&](const Tokens& group) MIXTRAL_LAMBDA {
      return hn::BitCast(d32, hn::Load(df, group.begin(half, block, n)));
    };
    const auto begin_a = begin(ga);
    const auto begin_b = begin(gb);
    const auto begin_c = kTwelve ? begin(gc) : begin_b;
    const auto begin_of = [&](std::size_t i)
                              MIXTRAL_LAMBDA { return of_group(i, begin_a, begin_b, begin_c); };
    VI32 d0 = begin_of(0), d1 = begin_of(1), d2 = begin_of(2), d3 = begin_of(3);
    VI32 d4 = begin_of(4), d5 = begin_of(5), d6 = begin_of(6), d7 = begin_of(7);
    VI32 d8_ = begin_of(8), d9 = begin_of(9), d10 = begin_of(10), d11 = begin_of(11);
    constexpr std::size_t kQuads = 8 / Kind::kHalves;
    MIXTRAL_UNROLL
    for (std::size_t first = 0; first < kQuads; first += Kind::kNarrowQuads) {
      VI32 q0 = begin_quads<Kind>(d0), q1 = begin_quads<Kind>(d1);
      VI32 q2 = begin_quads<Kind>(d2), q3 = begin_quads<Kind>(d3);
      VI32 q4 = begin_quads<Kind>(d4), q5 = begin_quads<Kind>(d5);
      VI32 q6 = begin_quads<Kind>(d6), q7 = begin_quads<Kind>(d7);
      VI32 q8 = begin_quads<Kind>(d8_), q9 = begin_quads<Kind>(d9);
      VI32 q10 = begin_quads<Kind>(d10), q11 = begin_quads<Kind>(d11);
      MIXTRAL_UNROLL
      for (std::size_t i = 0; i < Kind::kNarrowQuads; ++i) {
        const std::size_t quad = step * kQuads + first + i;
        const auto load = [&](const GroupTile<Kind>& tile, std::size_t word) MIXTRAL_LAMBDA {
          return in_register(hn::Load(d8, tile.words() + (quad * kWords + word) * n * kQuad));
        };
        const auto xa = load(tile_a, 0), last_xa = load(tile_a, kWords - 1);
        const auto xb = load(tile_b, 0), last_xb = load(tile_b, kWords - 1);
        const auto xc = load(tile_c, 0), last_xc = load(tile_c, kWords - 1);
        const auto add = [&](VI32& sum, std::size_t j) MIXTRAL_LAMBDA {
          const auto w = [&](std::size_t word) MIXTRAL_LAMBDA {
            return broadcast_quad(q + row(j) + (quad * kWords + word) * n);
          };
          const auto x = of_group(j, xa, xb, xc);
          if constexpr (Kind::kWide) {
            const DI16 d16;
            const auto last_x = of_group(j, last_xa, last_xb, last_xc);
            sum = wide_dot_add(sum, hn::BitCast(d16, w(0)), hn::BitCast(d16, w(1)),
                               hn::BitCast(d16, x), hn::BitCast(d16, last_x));
          } else {
            sum = add_quad<Kind>(sum, w(0), x);
          }
        };
        add(q0, 0), add(q1, 1), add(q2, 2), add(q3, 3);
        add(q4, 4), add(q5, 5), add(q6, 6), add(q7, 7);
        if (kTwelve) add(q8, 8), add(q9, 9), add(q10, 10), add(q11, 11);
      }
      d0 = end_quads<Kind>(d0, q0), d1 = end_quads<Kind>(d1, q1);
      d2 = end_quads<Kind>(d2, q2), d3 = end_quads<Kind>(d3, q3);
      d4 = end_quads<Kind>(d4, q4), d5 = end_quads<Kind>(d5, q5);
      d6 = end_quads<Kind>(d6, q6), d7 = end_quads<Kind>(d7, q7);
      if (kTwelve) {
        d8_ = end_quads<Kind>(d8_, q8), d9 = end_quads<Kind>(d9, q9);
        d10 = end_quads<Kind>(d10, q10), d11 = end_quads<Kind>(d11, q11);
      }
    }
    const auto base = [&](const Tokens& group)
                          MIXTRAL_LAMBDA { return hn::Load(df, group.base(block, n)); };
    const auto base_a = base(ga), base_b = base(gb), base_c = base(gc);
    const auto x_sum = [&](const Tokens& group, std::size_t o) MIXTRAL_LAMBDA {
      return o < Kind::kOffsets ? hn::Load(df, group.x_sum(o, block, n)) : hn::Zero(df);
    };
    const auto first_a = x_sum(ga, 0), first_b = x_sum(gb, 0), first_c = x_sum(gc, 0);
    const auto last_a = x_sum(ga, 1), last_b = x_sum(gb, 1), last_c = x_sum(gc, 1);
    const auto add = [&](VF& sum, VI32 dot, std::size_t i) MIXTRAL_LAMBDA {
      const auto number = hn::Sub(hn::BitCast(df, dot), of_group(i, base_a, base_b, base_c));
      const std::size_t at = first_scale + row(i) + block * n;
      const auto offset = [&](std::size_t o)
                              MIXTRAL_LAMBDA { return hn::Set(df, rows.offsets[o][at]); };
      const auto x_sum_of = [&](std::size_t o) MIXTRAL_LAMBDA {
        return o == 0 ? of_group(i, first_a, first_b, first_c)
                      : of_group(i, last_a, last_b, last_c);
      };
      sum = add_scaled_dot<Kind>(sum, number, hn::Set(df, rows.scales[half][at]), offset, x_sum_of);
    };
    add(s0, d0, 0), add(s1, d1, 1), add(s2, d2, 2), add(s3, d3, 3);
    add(s4, d4, 4), add(s5, d5, 5), add(s6, d6, 6), add(s7, d7, 7);
    if (kTwelve) add(s8, d8_, 8), add(s9, d9, 9), add(s10, d10, 10), add(s11, d11, 11);
  }
  const auto store = [&](VF sum, std::size_t i) MIXTRAL_LAMBDA { hn::Store(sum, df, sum_at(i)); };
  store(s0, 0), store(s1, 1), store(s2, 2), store(s3, 3);
  store(s4, 4), store(s5, 5), store(s6, 6), store(s7, 7);
  if (kTwelve) store(s8, 8), store(s9, 9), store(s10, 10), store(s11, 11);
}

// As Kernels::matmul_groups. `out` holds the sums as they grow, at first [group][row][token] where
// groups are full.
template <class Kind>
void matmul_groups_of(const Matrix& w, const Unpacker& unpacker, std::size_t first_row,
                      std::size_t n_rows, const std::uint8_t* groups, std::size_t n_tokens,
                      float* out) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  // What does not fill three quarters of a group is no group.
  std::size_t n_groups = (n_tokens + n / 4 - 1) / n, n_single = n_groups;
  while (groups_together(n_single) > 0) n_single -= groups_together(n_single);
  n_groups -= n_single;
  const std::size_t group_bytes = token_bytes(w.cols) * n;
  const std::size_t group_sums = kMaxMatmulRows * n;
  const std::size_t n_padded = (n_rows + 3) / 4 * 4;
  const std::size_t n_blocks = kMaxMatmulRows / 4 * ((n_groups + kMostGroups - 1) / kMostGroups);
  const std::size_t n_fetches = kMaxMatmulRows / n * kFetchesPerPart + n_blocks;
  TileRows rows;
  GroupTile<Kind> tiles[3];
  HWY_ALIGN std::uint32_t wide[Kind::kWide ? 2 * kMaxMatmulRows * kQuadsPerTile : 1];
  const std::uint32_t* words = Kind::kWide ? wide : rows.q;
  if (n_rows < kMaxMatmulRows) std::memset(&rows, 0, sizeof rows);
  std::memset(out, 0, n_groups * group_sums * sizeof(float));
  for (std::size_t col = 0; col < w.cols; col += kTile) {
    LaterTile later(w, unpacker.tile_bytes, first_row, n_rows, col, n_fetches);
    unpack_rows(w, unpacker, first_row, n_rows, col, later, rows);
    if (Kind::kWide) widen_quads(rows.q, kMaxMatmulRows / n * kQuadsPerTile, wide);
    const auto prepare = [&](std::size_t g, GroupTile<Kind>& tile) MIXTRAL_LAMBDA {
      tile.set(groups + g * group_bytes + col / kTile * kTokenTileBytes * n, n, unpacker.zero_bits);
    };
    const auto multiply = [&](auto count, std::size_t g) MIXTRAL_LAMBDA {
      constexpr std::size_t kGroups = decltype(count)::value;
      for (std::size_t i = 0; i < kGroups; ++i) prepare(g + i, tiles[i]);
      for (std::size_t row = 0; row < n_padded; row += 4) {
        later.fetch();
        multiply_tile_block<Kind, kGroups>(rows, words, row, tiles, out + g * group_sums + row * n,
                                           group_sums);
      }
      return kGroups;
    };
    for (std::size_t g = 0; g < n_groups;) {
      if (kFewestGroups == kMostGroups || groups_together(n_groups - g) == kMostGroups) {
        g += multiply(std::integral_constant<std::size_t, kMostGroups>(), g);
      } else {
        g += multiply(std::integral_constant<std::size_t, kFewestGroups>(), g);
      }
    }
    for (std::size_t g = n_groups; g * n < n_tokens; ++g) {
      prepare(g, tiles[0]);
      const auto from = [&](std::size_t t) MIXTRAL_LAMBDA { return tiles[0].tokens_from(t); };
      for (std::size_t row = 0; row < n_rows; row += 2 * n) {
        const TilePart parts[2] = {rows.part(row), rows.part(row + n)};
        multiply_tokens(Kind(), parts, from, HWY_MIN(n, n_tokens - g * n), col == 0, later,
                        out + g * group_sums + row);
      }
    }
  }
  // A group's tokens and rows change places.
  HWY_ALIGN float sums[kMaxMatmulRows * kMaxLanes];
  for (std::size_t g = 0; g < n_groups; ++g) {
    float* group = out + g * group_sums;
    std::memcpy(sums, group, group_sums * sizeof(float));
    for (std::size_t row = 0; row < kMaxMatmulRows; row += n) {
      transpose(sums + row * n, n, group + row, kMaxMatmulRows);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
