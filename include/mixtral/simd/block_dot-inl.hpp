// Per target: dots of blocks, of unpacked weights and quantised tokens, and how they are added to a sum, for
// all matrix products of quantised weights.
//
// The dots become floats, times the activations' scale, for the price of a subtraction: they are counted
// on from the bits of 1.5 * 2^23 * scale, whose last bit is worth that scale, which is then subtracted.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// How many quads' products fit in lanes of 16 bits, two of each quad in a lane, for weights up to max_quant:
// `most`, or a half of it, and so on.
constexpr std::size_t narrow_quads(std::size_t max_quant, std::size_t most) {
  return most * 2 * 127 * max_quant < (1 << 15) ? most : narrow_quads(max_quant, most / 2);
}

// Formats that are multiplied by the same code.
template <bool kHasHalves, std::size_t kNOffsets, bool kIsSigned, std::size_t kNarrow>
struct DotKind {
  static constexpr std::size_t kHalves = kHasHalves ? 2 : 1;   // of a block, with their own scales
  static constexpr std::size_t kOffsets = kNOffsets;           // of a block: 0, 1 or 2
  static constexpr bool kSigned = kIsSigned;                   // the stored quants are
  static constexpr bool kZero = kNOffsets == 0 && !kIsSigned;  // there is a zero to subtract
  // The quads whose products are summed in lanes of 16 bits before these are summed in pairs.
  static constexpr std::size_t kNarrowQuads = kNarrow;
  // Whether they are multiplied as numbers of 16 bits where that is prepared for many products.
  static constexpr bool kWide = kIsSigned && !kSumsQuads;
};
template <class Format>
constexpr auto dot_kind() {
  constexpr bool kHasHalves = Format::kScaleColumns == 16;
  constexpr std::size_t kNOffsets =
      Format::kOffsetColumns == 0 ? 0 : kBlock / Format::kOffsetColumns;
  if constexpr (kSumsQuads || Format::kSigned) {
    return DotKind < kHasHalves, kNOffsets, Format::kSigned && !kUnsignedDot, 1 > ();
  } else {
    // Fewer kinds: as if the quants of all formats were as large as the largest.
    constexpr std::size_t kLeast = kSmallCode ? (kHasHalves ? 63 : 31) : 0;
    constexpr std::size_t kMaxQuant = Format::kMaxQuant > kLeast ? Format::kMaxQuant : kLeast;
    return DotKind<kHasHalves, kNOffsets, false, narrow_quads(kMaxQuant, kHasHalves ? 4 : 8)>();
  }
}
template <class Format>
using DotKindOf = decltype(dot_kind<Format>());

// Products of kNarrowQuads quads are added to what begin_quads() gives; end_quads() adds them to a dot.
template <class Kind>
HWY_INLINE VI32 begin_quads(VI32 dot) {
  return Kind::kNarrowQuads == 1 ? dot : hn::Zero(DI32());
}
template <class Kind>
HWY_INLINE VI32 add_quad(VI32 sum, VI8 w, VI8 x) {
  if (Kind::kNarrowQuads == 1) return quad_dot_add<Kind::kSigned>(sum, w, x);
  const auto more = hn::Add(hn::BitCast(DI16(), sum), pair_dot<Kind::kSigned>(w, x));
  return hn::BitCast(DI32(), in_this_order(more));
}
template <class Kind>
HWY_INLINE VI32 end_quads(VI32 dot, VI32 sum) {
  return Kind::kNarrowQuads == 1 ? sum : hn::Add(dot, sum_pairs(hn::BitCast(DI16(), sum)));
}

HWY_INLINE VI8 broadcast_quad(const void* q) {
  std::int32_t four;
  std::memcpy(&four, q, kQuad);
  return hn::BitCast(DI8(), hn::Set(DI32(), four));
}

// What is the same for all rows, of a token and those after it in a tile of n. For each block, or each of
// its halves: base, 1.5 * 2^23 * scale; begin, with the bits where dots begin: those of base, less what
// the weights' zero adds; x_sum, the sum of the activations.
template <class Kind>
struct TileTokens {
  static constexpr std::size_t kBegin = 1, kXSum = kBegin + Kind::kHalves;

  const std::int8_t* q;
  const float* numbers;  // [base, begin or x_sum of a half][block][token]

  HWY_INLINE const std::int8_t* quad(std::size_t i, std::size_t n) const {
    return q + i * n * kQuad;
  }
  HWY_INLINE const float* base(std::size_t block, std::size_t n) const {
    return numbers + block * n;
  }
  HWY_INLINE const float* begin(std::size_t half, std::size_t block, std::size_t n) const {
    return numbers + ((kBegin + half) * kBlocksPerTile + block) * n;
  }
  HWY_INLINE const float* x_sum(std::size_t half, std::size_t block, std::size_t n) const {
    return numbers + ((kXSum + half) * kBlocksPerTile + block) * n;
  }
};

// The same for a tile of up to kMaxTokens tokens.
template <class Kind, std::size_t kMaxTokens>
class PreparedTile {
 public:
  // Of the n tokens at `tile`.
  HWY_INLINE void set(const std::uint8_t* tile, std::size_t n, int zero_bits) {
    const D df;
    const hn::RebindToSigned<D> d32;
    const hn::Rebind<std::int16_t, D> d16;
    const auto to_base = hn::Set(d32, (23 << 23) + (1 << 22));  // from 2^i to 1.5 * 2^(i + 23)
    q_ = tile_q(tile);
    for (std::size_t i = 0; i < kBlocksPerTile * n; i += hn::Lanes(df)) {
      const auto store = [&](auto v, std::size_t place) MIXTRAL_LAMBDA {
        hn::Store(hn::BitCast(df, v), df, numbers_ + place * kBlocksPerTile * n + i);
      };
      const auto scale = hn::Load(df, tile_scale(tile, n) + i);
      const auto bits = hn::Add(hn::BitCast(d32, scale), to_base);
      store(bits, 0);
      const std::int16_t* q_sum = tile_q_sum(tile, n) + i;
      const auto first = hn::PromoteTo(d32, hn::LoadU(d16, q_sum));
      const auto last = hn::PromoteTo(d32, hn::LoadU(d16, q_sum + kBlocksPerTile * n));
      const auto sum = [&](std::size_t n_parts, std::size_t part) MIXTRAL_LAMBDA {
        return n_parts == 1 ? hn::Add(first, last) : part == 0 ? first : last;
      };
      for (std::size_t half = 0; half < Kind::kHalves; ++half) {
        const auto zero = hn::ShiftLeftSame(sum(Kind::kHalves, half), zero_bits);
        store(Kind::kZero ? hn::Sub(bits, zero) : bits, Tokens::kBegin + half);
      }
      for (std::size_t part = 0; part < Kind::kOffsets; ++part) {
        store(hn::Mul(hn::ConvertTo(df, sum(Kind::kOffsets, part)), scale), Tokens::kXSum + part);
      }
    }
  }

  // Those from token t on.
  HWY_INLINE TileTokens<Kind> from(std::size_t t) const { return {q_ + t * kQuad, numbers_ + t}; }

 private:
  using D = hn::CappedTag<float, kMaxTokens == 1 ? kBlocksPerTile : kMaxLanes>;
  using Tokens = TileTokens<Kind>;
  static constexpr std::size_t kPlaces = Tokens::kXSum + Kind::kOffsets;

  const std::int8_t* q_;
  HWY_ALIGN float numbers_[kPlaces * kBlocksPerTile * kMaxTokens];
};

// The tiles of tokens that lie apart, of which quads and numbers come to lie together.
template <class Kind>
class PreparedToken {
 public:
  HWY_INLINE void set(const std::uint8_t* tile, int zero_bits) {
    std::memcpy(q_, tile_q(tile), kTile);
    numbers_.set(tile, 1, zero_bits);
  }
  HWY_INLINE TileTokens<Kind> tokens() const { return {q_, numbers_.from(0).numbers}; }

 private:
  HWY_ALIGN std::int8_t q_[kTile];
  PreparedTile<Kind, 1> numbers_;
};

// Several tokens: token t, and how many there are in the tile that it is in.
template <class Kind>
struct TokensApart {
  const PreparedToken<Kind>* tokens;

  HWY_INLINE TileTokens<Kind> at(std::size_t t) const { return tokens[t].tokens(); }
  HWY_INLINE std::size_t n_in_tile() const { return 1; }
};
template <class Kind>
struct TokensAnywhere {
  TileTokens<Kind> first;
  std::size_t next_q, next_number;  // from one token to the next
  std::size_t in_tile;

  // Of a group's tile, from token t on, or of tokens that lie apart.
  HWY_INLINE TokensAnywhere(const PreparedTile<Kind, kMaxLanes>& tile, std::size_t t)
      : first(tile.from(t)), next_q(kQuad), next_number(1), in_tile(hn::Lanes(DF())) {}
  HWY_INLINE explicit TokensAnywhere(const PreparedToken<Kind>* tokens)
      : first(tokens->tokens()),
        next_q(sizeof *tokens),
        next_number(sizeof *tokens / sizeof(float)),
        in_tile(1) {}

  HWY_INLINE TileTokens<Kind> at(std::size_t t) const {
    return {first.q + t * next_q, first.numbers + t * next_number};
  }
  HWY_INLINE std::size_t n_in_tile() const { return in_tile; }
};

// sum + scale * dot, less offset_of(i) * x_sum_of(i) for each offset of the block. What is rounded once is
// joined by hand, so that no compiler chooses.
template <class Kind, class OffsetOf, class XSumOf>
HWY_INLINE VF add_scaled_dot(VF sum, VF dot, VF scale, const OffsetOf& offset_of,
                             const XSumOf& x_sum_of) {
  static_assert(Kind::kOffsets == 0 || Kind::kHalves == 1, "offsets are of whole blocks' dots");
  sum = mul_add(dot, scale, sum);
  if (Kind::kOffsets > 0) sum = neg_mul_add(offset_of(0), x_sum_of(0), sum);
  if (Kind::kOffsets > 1) sum = neg_mul_add(offset_of(1), x_sum_of(1), sum);
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
