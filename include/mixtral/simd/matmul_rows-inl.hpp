// Per target: quantised weights times one token, as in decoding, or a few.
//
// A vector goes along the rows of a part: four columns of each, times the same four of a token in all
// lanes, so that nothing has to be summed across lanes. A row's sum runs over the blocks of 32 columns
// in their order, as in matmul_groups-inl.hpp: the results are the same bits.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Measured: groups cost the same if there are fewer tokens than lanes.
constexpr std::size_t kMinGroupedTokens = hn::MaxLanes(DF()) > 4 ? 14 : 6;

// Adds one tile of two parts of rows times kTokens tokens, 1, 2 or 4, each in a tile of n_in_tile, to
// `out`, or begins with it.
template <class Kind, std::size_t kTokens>
HWY_NOINLINE void multiply_parts(const TilePart* parts, const TileTokens<Kind>* tokens,
                                 std::size_t n_in_tile, bool begins, LaterTile& later, float* out) {
  const DF df;
  const DI32 d32;
  const DI8 d8;
  const DU32 du32;
  const std::size_t n = hn::Lanes(df);
  // Of token t: part 0, part 1. (Highway has no arrays of vectors.)
  const auto sum_at = [&](std::size_t t, std::size_t p)
                          MIXTRAL_LAMBDA { return out + t * kMaxMatmulRows + p * n; };
  const auto load_sum = [&](std::size_t t, std::size_t p) MIXTRAL_LAMBDA {
    return begins || t >= kTokens ? hn::Zero(df) : hn::Load(df, sum_at(t, p));
  };
  VF s00 = load_sum(0, 0), s01 = load_sum(0, 1), s10 = load_sum(1, 0), s11 = load_sum(1, 1);
  VF s20 = load_sum(2, 0), s21 = load_sum(2, 1), s30 = load_sum(3, 0), s31 = load_sum(3, 1);
  for (std::size_t step = 0; step < kBlocksPerTile * Kind::kHalves; ++step) {
    const std::size_t block = step / Kind::kHalves, half = step % Kind::kHalves;
    if (half == 0) later.fetch();
    const auto begin = [&](std::size_t t) MIXTRAL_LAMBDA {
      const float* bits = tokens[t < kTokens ? t : 0].begin(half, block, n_in_tile);
      return hn::BitCast(d32, hn::Set(df, *bits));
    };
    VI32 d00 = begin(0), d01 = d00, d10 = begin(1), d11 = d10;
    VI32 d20 = begin(2), d21 = d20, d30 = begin(3), d31 = d30;
    constexpr std::size_t kQuads = 8 / Kind::kHalves;
    MIXTRAL_UNROLL
    for (std::size_t i = 0; i < kQuads; ++i) {
      const std::size_t quad = step * kQuads + i;
      const auto load = [&](std::size_t p) MIXTRAL_LAMBDA {
        return in_register(hn::BitCast(d8, hn::Load(du32, parts[p].quants.q + quad * n)));
      };
      const auto w0 = load(0), w1 = load(1);
      const auto add = [&](VI32& dot0, VI32& dot1, std::size_t t) MIXTRAL_LAMBDA {
        const auto x = in_register(broadcast_quad(tokens[t].quad(quad, n_in_tile)));
        dot0 = quad_dot_add<Kind::kSigned>(dot0, w0, x);
        dot1 = quad_dot_add<Kind::kSigned>(dot1, w1, x);
      };
      add(d00, d01, 0);
      if (kTokens > 1) add(d10, d11, 1);
      if (kTokens > 2) add(d20, d21, 2), add(d30, d31, 3);
    }
    const auto add = [&](VF& sum, VI32 dot, std::size_t t, std::size_t p) MIXTRAL_LAMBDA {
      const auto number =
          hn::Sub(hn::BitCast(df, dot), hn::Set(df, *tokens[t].base(block, n_in_tile)));
      const TileScales& scales = parts[p].scales;
      const auto offset = [&](std::size_t i) MIXTRAL_LAMBDA {
        return hn::Load(df, scales.offsets[i] + block * n);
      };
      const auto x_sum = [&](std::size_t i) MIXTRAL_LAMBDA {
        return hn::Set(df, *tokens[t].x_sum(i, block, n_in_tile));
      };
      sum = add_scaled_dot<Kind>(sum, number, hn::Load(df, scales.scales[half] + block * n), offset,
                                 x_sum);
    };
    add(s00, d00, 0, 0), add(s01, d01, 0, 1);
    if (kTokens > 1) add(s10, d10, 1, 0), add(s11, d11, 1, 1);
    if (kTokens > 2) add(s20, d20, 2, 0), add(s21, d21, 2, 1);
    if (kTokens > 2) add(s30, d30, 3, 0), add(s31, d31, 3, 1);
  }
  const auto store = [&](VF sum0, VF sum1, std::size_t t) MIXTRAL_LAMBDA {
    hn::Store(sum0, df, sum_at(t, 0));
    hn::Store(sum1, df, sum_at(t, 1));
  };
  store(s00, s01, 0);
  if (kTokens > 1) store(s10, s11, 1);
  if (kTokens > 2) store(s20, s21, 2), store(s30, s31, 3);
}

// The same for any number of tokens. Where three are left, four are multiplied, since two and then one take
// longer; the fourth's sums are of no use.
template <class Kind>
void multiply_tokens(const TilePart* parts, const TileTokens<Kind>* tokens, std::size_t n_tokens,
                     std::size_t n_in_tile, bool begins, LaterTile& later, float* out) {
  for (std::size_t t = 0, together; t < n_tokens; t += together) {
    const std::size_t left = n_tokens - t;
    together = left >= 3 ? 4 : left;
    const TileTokens<Kind>* xt = tokens + t;
    TileTokens<Kind> filled[4];
    if (left == 3) {
      for (std::size_t i = 0; i < 4; ++i) filled[i] = xt[HWY_MIN(i, 2)];
      xt = filled;
    }
    const auto multiply = [&](auto n_together) MIXTRAL_LAMBDA {
      multiply_parts<Kind, decltype(n_together)::value>(parts, xt, n_in_tile, begins, later,
                                                        out + t * kMaxMatmulRows);
    };
    if (together == 4) {
      multiply(std::integral_constant<std::size_t, 4>());
    } else if (together == 2) {
      multiply(std::integral_constant<std::size_t, 2>());
    } else {
      multiply(std::integral_constant<std::size_t, 1>());
    }
  }
}

// The tile at column `col` of each token.
template <class Kind>
HWY_NOINLINE void prepare_tokens(const void* const* x, std::size_t n_tokens, std::size_t col,
                                 int zero_bits, PreparedTile<Kind, 1>* tiles,
                                 TileTokens<Kind>* tokens) {
  for (std::size_t t = 0; t < n_tokens; ++t) {
    const auto* token = static_cast<const std::uint8_t*>(x[t]);
    tiles[t].set(token + col / kTile * kTokenTileBytes, 1, zero_bits);
    tokens[t] = tiles[t].from(0);
  }
}

// As Kernels::matmul, for kMaxLanes tokens at most, which share what was unpacked; `out` holds the sums
// as they grow.
template <class Kind>
void matmul_few(const Matrix& w, const Unpacker& unpacker, std::size_t first_row,
                std::size_t n_rows, const void* const* x, std::size_t n_tokens, float* out) {
  const std::size_t n = hn::Lanes(DF());
  const std::size_t n_fetches = 2 * kFetchesPerPart + kBlocksPerTile * ((n_tokens + 3) / 4);
  TileRows rows;
  PreparedTile<Kind, 1> tiles[kMaxLanes];
  TileTokens<Kind> tokens[kMaxLanes];
  if (n_rows % (2 * n) != 0) std::memset(&rows, 0, sizeof rows);
  const TilePart parts[2] = {rows.part(0), rows.part(n)};
  for (std::size_t begin = 0; begin < n_rows; begin += 2 * n) {
    const std::size_t count = HWY_MIN(2 * n, n_rows - begin);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      LaterTile later(w, unpacker.tile_bytes, first_row + begin, count, col, n_fetches);
      unpack_rows(w, unpacker, first_row + begin, count, col, later, rows);
      prepare_tokens(x, n_tokens, col, unpacker.zero_bits, tiles, tokens);
      multiply_tokens<Kind>(parts, tokens, n_tokens, 1, col == 0, later, out + begin);
    }
  }
}

// Whether one token has code of its own: not where there are no arrays of vectors, nor for old CPUs, which
// are not worth what it takes to compile. (Differs between targets.)
#undef MIXTRAL_TOKEN_DOTS
#if HWY_HAVE_SCALABLE || HWY_TARGET == HWY_SSSE3 || (HWY_ARCH_X86 && HWY_TARGET == HWY_AVX3)
#define MIXTRAL_TOKEN_DOTS 0
#else
#define MIXTRAL_TOKEN_DOTS 1
#endif

#if MIXTRAL_TOKEN_DOTS
// Blocks of one part of the rows that are multiplied with a token as they are unpacked, instead of
// being stored: an equal of TileQuants.
template <class Kind, std::size_t kBlocks>
class TokenDots {
 public:
  // From block `first` of the tile on.
  HWY_INLINE TokenDots(const TileTokens<Kind>& x, std::size_t first) : x_(x), first_(first) {
    MIXTRAL_UNROLL
    for (std::size_t i = 0; i < kBlocks * kHalves; ++i) {
      dots_[i] = hn::BitCast(DI32(), hn::Set(DF(), *x.begin(i % kHalves, first + i / kHalves, 1)));
    }
  }

  HWY_INLINE void store(VU32 v, std::size_t quad) {
    VI32& dot = dots_[quad * kHalves / 8];
    const auto x = broadcast_quad(x_.quad(first_ * 8 + quad, 1));
    dot = quad_dot_add<Kind::kSigned>(dot, hn::BitCast(DI8(), v), x);
  }
  HWY_INLINE void store_signed(VU32 v, std::size_t quad) { store(signed_quad(v), quad); }

  HWY_INLINE VF add_to(VF sum, const TileScales& scales) const {
    const DF df;
    MIXTRAL_UNROLL
    for (std::size_t i = 0; i < kBlocks * kHalves; ++i) {
      const std::size_t block = first_ + i / kHalves, half = i % kHalves;
      const std::size_t at = block * hn::Lanes(df);
      const auto number = hn::Sub(hn::BitCast(df, dots_[i]), hn::Set(df, *x_.base(block, 1)));
      const auto offset = [&](std::size_t o)
                              MIXTRAL_LAMBDA { return hn::Load(df, scales.offsets[o] + at); };
      const auto x_sum = [&](std::size_t o)
                             MIXTRAL_LAMBDA { return hn::Set(df, *x_.x_sum(o, block, 1)); };
      sum =
          add_scaled_dot<Kind>(sum, number, hn::Load(df, scales.scales[half] + at), offset, x_sum);
    }
    return sum;
  }

 private:
  static constexpr std::size_t kHalves = Kind::kHalves;
  TileTokens<Kind> x_;
  std::size_t first_;
  VI32 dots_[kBlocks * kHalves];  // [block][half]
};

// As Kernels::matmul, for one token. Fewer rows at a time than for a few tokens, since memory is then
// read at fewer places at the same time.
template <class Format>
void matmul_one(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* x,
                float* out) {
  using Kind = DotKindOf<Format>;
  constexpr std::size_t kSteps = kBlocksPerTile / Format::kStepBlocks;
  const DF df;
  const std::size_t n = hn::Lanes(df);
  PreparedTile<Kind, 1> token;
  HWY_ALIGN std::uint32_t words[PartBytes<Format>::kWords * kMaxLanes];
  HWY_ALIGN float values[4][kMaxLanes * kBlocksPerTile];
  const TileScales scales{{values[0], values[1]}, {values[2], values[3]}};
  for (std::size_t begin = 0; begin < n_rows; begin += n) {
    const std::size_t row = first_row + begin, count = HWY_MIN(n, n_rows - begin);
    VF sum = hn::Zero(df);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      LaterTile later(w, kBytesPerTile<Format>, row, count, col, kSteps);
      PartBytes<Format>(w, row, count, col).transpose(words);
      const PackedRows rows{words};
      const auto* tile = static_cast<const std::uint8_t*>(x) + col / kTile * kTokenTileBytes;
      token.set(tile, 1, zero_bits_of(kZeroOf<Format>));
      Format::unpack_scales(rows, scales);
      for (std::size_t step = 0; step < kSteps; ++step) {
        later.fetch();
        TokenDots<Kind, Format::kStepBlocks> dots(token.from(0), step * Format::kStepBlocks);
        Format::unpack_quants(rows, step, dots);
        sum = dots.add_to(sum, scales);
      }
    }
    hn::Store(sum, df, out + begin);
  }
}
#endif

template <class Format>
void matmul_rows(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                 std::size_t n_tokens, float* out) {
#if MIXTRAL_TOKEN_DOTS
  if constexpr (!Format::kByRow) {
    if (n_tokens == 1) return matmul_one<Format>(w, first_row, n_rows, x[0], out);
  }
#endif
  for (std::size_t t = 0; t < n_tokens; t += kMaxLanes) {
    matmul_few<DotKindOf<Format>>(w, unpacker<Format>(), first_row, n_rows, x + t,
                                  HWY_MIN(kMaxLanes, n_tokens - t), out + t * kMaxMatmulRows);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
