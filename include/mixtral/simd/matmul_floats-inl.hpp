// Per target: unquantised weights times tokens.
//
// Rows are made of units: one column or, of BF16 with rounded tokens, two. Of a tile's units those 16 apart are
// summed in their order, from zero, and these 16 sums are added to the row's in their order. So a vector
// may go along a row, as for one token, or along the rows, as for more: the results are the same bits,
// in either layout of the matrix and with vectors of any length.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Unpacks n_cols weights to float32 and clears the rest of the n_padded at `tile`.
template <class Format>
HWY_INLINE void unpack_floats(const std::uint8_t* data, std::size_t n_cols, std::size_t n_padded,
                              float* tile) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  std::size_t i = 0;
  for (; i + n <= n_cols; i += n) {
    hn::Store(Format::load(df, data + i * Format::kBytes), df, tile + i);
  }
  for (; i < n_cols; ++i) tile[i] = Format::load_one(data + i * Format::kBytes);
  for (; i < n_padded; ++i) tile[i] = 0.0f;
}

// Of two columns of BF16 in a word, the first in the lower half.
HWY_INLINE VU32 first_of_pair(VU32 v) { return hn::ShiftLeft<16>(v); }
HWY_INLINE VU32 second_of_pair(VU32 v) { return hn::And(v, hn::Set(DU32(), 0xffff0000u)); }

// So many sums are made of a tile's units.
constexpr std::size_t kUnitSums = 16;

// Of the float formats only BF16 is interleaved, as pairs: the others are rare, or small matrices. A tile's
// pairs lie in the order in which sums are made, those of a class together, so that memory is read from front
// to back.
template <class Format>
constexpr bool kInterleaves = std::is_same<Format, Bf16>::value;
constexpr std::size_t kPairClasses = kUnitSums / 2, kPairsOfClass = kTile / 2 / kPairClasses;
constexpr std::size_t place_of_pair(std::size_t pair) {
  return pair % kPairClasses * kPairsOfClass + pair / kPairClasses;
}
constexpr std::size_t pair_at(std::size_t place) {
  return place % kPairsOfClass * kPairClasses + place / kPairsOfClass;
}

// Brings the pairs of an interleaved tile of BF16 into their order.
HWY_INLINE void order_pairs(std::uint32_t* words) {
  const DU32 d;
  const std::size_t n = hn::Lanes(d);
  HWY_ALIGN std::uint32_t before[kTile / 2 * kMaxLanes];
  for (std::size_t i = 0; i < kTile / 2; ++i) {
    hn::Store(hn::Load(d, words + i * n), d, before + i * n);
  }
  for (std::size_t i = 0; i < kTile / 2; ++i) {
    hn::Store(hn::Load(d, before + pair_at(i) * n), d, words + i * n);
  }
}

// Units are columns, as float32.
struct Columns {
  static constexpr std::size_t kColumns = 1;  // of a unit

  // The unit of a token, `bits`, in all lanes.
  static HWY_INLINE VU32 in_all_lanes(std::uint32_t bits) { return hn::Set(DU32(), bits); }
  static HWY_INLINE VF add_product(VF sum, VU32 w, VU32 x) {
    const DF df;
    return mul_add(hn::BitCast(df, w), hn::BitCast(df, x), sum);
  }
};

// Units are two columns of BF16, the first in the lower half. The second is added first, as by DotPairs.
struct Pairs {
  static constexpr std::size_t kColumns = 2;

  static HWY_INLINE VU32 in_all_lanes(std::uint32_t bits) { return hn::Set(DU32(), bits); }
  static HWY_INLINE VF add_product(VF sum, VU32 w, VU32 x) {
    sum = Columns::add_product(sum, second_of_pair(w), second_of_pair(x));
    return Columns::add_product(sum, first_of_pair(w), first_of_pair(x));
  }
};

#if MIXTRAL_BF16_DOT
// The same by one instruction. It takes subnormal numbers as zeros: see kLeastBf16.
struct DotPairs {
  static constexpr std::size_t kColumns = 2;

  // Optimisers that know both the lanes, all the same, and their type, BF16, consider to do the shuffle in
  // that type; what that costs some cannot say without a crash. They do not know what loaded_once() gives.
  // It takes no more instructions, since the lanes are in a register anyway: two vectors of rows are
  // multiplied with them. Other compilers see what they saw before, since clang 14 would not unroll the
  // loop in multiply_units() otherwise.
  static HWY_INLINE VU32 in_all_lanes(std::uint32_t bits) {
    const auto lanes_of_unit = hn::Set(DU32(), bits);
    return MIXTRAL_BF16_SHUFFLES_CRASH ? loaded_once(lanes_of_unit) : lanes_of_unit;
  }
  static HWY_INLINE VF add_product(VF sum, VU32 w, VU32 x) {
    return VF{_mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(w.raw),
                               reinterpret_cast<__m512bh>(x.raw))};
  }
  static HWY_INLINE bool cpu_has_it() {
#ifdef __AVX512BF16__
    return true;
#else
    return MIXTRAL_CPU_HAS_AVX512_BF16();
#endif
  }
};
#endif

// Where tokens are rounded, too, numbers below 2^-50 count as zeros: then no product and no sum of them is
// subnormal, and instructions that differ there agree. In the upper half of a word:
constexpr std::uint32_t kLeastBf16 = (127u - 50u) << 23;

HWY_INLINE VU32 clear_tiny_pairs(VU32 v) {
  const DI32 d32;
  const hn::Repartition<std::int16_t, DI32> d16;
  const auto magnitude = hn::And(hn::BitCast(d16, v), hn::Set(d16, 0x7fff));
  const auto least =
      hn::BitCast(d16, hn::Set(d32, static_cast<int>(kLeastBf16 | kLeastBf16 >> 16)));
  const auto tiny = hn::VecFromMask(d16, hn::Lt(magnitude, least));
  return hn::AndNot(hn::BitCast(DU32(), tiny), v);
}

// How many times unpack_units calls later.fetch() where rows are interleaved.
constexpr std::size_t kFetchesPerInterleaved = 16;

// The tile at column `col` of n_rows rows, as many as there are lanes or fewer: out[unit][row].
template <class Format, class Units>
HWY_NOINLINE void unpack_units(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                               std::size_t col, LaterTile& later, std::uint32_t* out) {
  constexpr std::size_t kUnits = kTile / Units::kColumns;
  constexpr bool kPairs = Units::kColumns == 2;
  const DU32 d32;
  const std::size_t n = hn::Lanes(d32);
  const std::size_t n_cols = HWY_MIN(kTile, w.cols - col);
  HWY_ALIGN float copy[kMaxLanes * kUnits];
  if (w.transposed) {
    const auto line = [&](std::size_t c) MIXTRAL_LAMBDA {
      if (c >= n_cols) return hn::Zero(d32);
      const std::uint8_t* data = w.data + (col + c) * w.row_bytes + first_row * Format::kBytes;
      if (n_rows == n) return hn::BitCast(d32, Format::load(DF(), data));
      unpack_floats<Format>(data, n_rows, n, copy);
      return hn::BitCast(d32, hn::Load(DF(), copy));
    };
    for (std::size_t i = 0; i < kUnits; ++i) {
      const auto v = kPairs ? hn::Or(hn::ShiftRight<16>(line(2 * i)), line(2 * i + 1)) : line(i);
      hn::Store(kPairs ? clear_tiny_pairs(v) : v, d32, out + i * n);
    }
    return;
  }
  if (kInterleaves<Format> && w.interleaved != 0) {
    const std::uint8_t* data = interleaved_tile(w, kTile * Format::kBytes, first_row, col);
    const auto* words = reinterpret_cast<const std::uint32_t*>(data);
    for (std::size_t i = 0; i < kTile / 2; ++i) {
      if (i % (kTile / 2 / kFetchesPerInterleaved) == 0) later.fetch();
      const auto v = hn::Load(d32, words + i * n);
      std::uint32_t* to = out + pair_at(i) * 2 / Units::kColumns * n;
      if (kPairs) {
        hn::Store(clear_tiny_pairs(v), d32, to);
      } else {
        hn::Store(first_of_pair(v), d32, to);
        hn::Store(second_of_pair(v), d32, to + n);
      }
    }
    return;
  }
  constexpr bool kInPlace = Format::kBytes * Units::kColumns == 4;
  const std::uint8_t* data = w.data + first_row * w.row_bytes + col * Format::kBytes;
  std::size_t row_bytes = w.row_bytes;
  if (!kInPlace || n_rows < n || n_cols < kTile) {
    for (std::size_t r = 0; r < n; ++r) {
      float* row = copy + r * kUnits;
      if (kInPlace || r >= n_rows) std::memset(row, 0, kUnits * sizeof(float));
      if (r >= n_rows) continue;
      if (kInPlace) {
        std::memcpy(row, data + r * row_bytes, n_cols * Format::kBytes);
      } else {
        unpack_floats<Format>(data + r * row_bytes, n_cols, kUnits, row);
      }
    }
    data = reinterpret_cast<const std::uint8_t*>(copy);
    row_bytes = kUnits * sizeof(float);
  }
  transpose_words(data, row_bytes, kUnits, out);
  for (std::size_t i = 0; kPairs && i < kUnits; ++i) {
    hn::Store(clear_tiny_pairs(hn::Load(d32, out + i * n)), d32, out + i * n);
  }
}

// Up to so many tokens are multiplied with interleaved rows as these are read. Measured with AVX2: for more it is
// as fast to unpack them before, the sooner the more there is to do for each of a word.
template <class Units>
constexpr std::size_t kMaxInterleavedTokens = Units::kColumns == 2 ? 3 : 16;

// With the longest vectors, one token is multiplied so fast, and so many bytes lie together, that hardware alone
// fetches best (measured with AVX-512: 1.3 times as fast; with AVX2 it was 0.7 times).
constexpr bool kFetchesForOne = hn::MaxLanes(DF()) < kMaxLanes;

// So many tokens are multiplied together, as registers have room for.
constexpr std::size_t kTokensTogether =
    (HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3) || HWY_ARCH_WASM ? 4 : 8;

// Adds one tile of two parts of rows, [part][unit][row], times kTokens tokens to `out`, or begins with it.
template <class Units, std::size_t kTokens>
HWY_NOINLINE void multiply_units(const std::uint32_t* tile, const std::uint8_t* const* x,
                                 bool begins, float* out) {
  constexpr std::size_t kUnits = kTile / Units::kColumns;
  const DF df;
  const DU32 d32;
  const std::size_t n = hn::Lanes(df);
  const auto store = [&](VF sum0, VF sum1, std::size_t t, bool first) MIXTRAL_LAMBDA {
    float* to = out + t * kMaxMatmulRows;
    hn::Store(first ? sum0 : hn::Add(hn::Load(df, to), sum0), df, to);
    hn::Store(first ? sum1 : hn::Add(hn::Load(df, to + n), sum1), df, to + n);
  };
  for (std::size_t sum = 0; sum < kUnitSums; ++sum) {
    // Of token t: part 0, part 1. (Highway has no arrays of vectors.)
    VF s00 = hn::Zero(df), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00;
    VF s31 = s00, s40 = s00, s41 = s00, s50 = s00, s51 = s00, s60 = s00, s61 = s00, s70 = s00;
    VF s71 = s00;
    for (std::size_t i = sum; i < kUnits; i += kUnitSums) {
      const auto w0 = hn::Load(d32, tile + i * n);
      const auto w1 = hn::Load(d32, tile + (kUnits + i) * n);
      const auto add = [&](VF& sum0, VF& sum1, std::size_t t) MIXTRAL_LAMBDA {
        std::uint32_t unit;
        std::memcpy(&unit, x[t] + 4 * i, 4);
        const auto xt = Units::in_all_lanes(unit);
        sum0 = Units::add_product(sum0, w0, xt);
        sum1 = Units::add_product(sum1, w1, xt);
      };
      add(s00, s01, 0);
      if (kTokens > 1) add(s10, s11, 1);
      if (kTokens > 2) add(s20, s21, 2), add(s30, s31, 3);
      if (kTokens > 4) add(s40, s41, 4), add(s50, s51, 5), add(s60, s61, 6), add(s70, s71, 7);
    }
    const bool first = begins && sum == 0;
    store(s00, s01, 0, first);
    if (kTokens > 1) store(s10, s11, 1, first);
    if (kTokens > 2) store(s20, s21, 2, first), store(s30, s31, 3, first);
    if (kTokens > 4) store(s40, s41, 4, first), store(s50, s51, 5, first);
    if (kTokens > 4) store(s60, s61, 6, first), store(s70, s71, 7, first);
  }
}

// As Kernels::matmul, for any number of tokens: a vector goes along the rows.
template <class Format, class Units>
void matmul_many(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                 std::size_t n_tokens, float* out) {
  constexpr std::size_t kUnits = kTile / Units::kColumns;
  const std::size_t n = hn::Lanes(DF());
  HWY_ALIGN std::uint32_t tile[kUnits * 2 * kMaxLanes];
  for (std::size_t begin = 0; begin < n_rows; begin += 2 * n) {
    const std::size_t row = first_row + begin, count = HWY_MIN(2 * n, n_rows - begin);
    if (count <= n) std::memset(tile, 0, sizeof tile);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      LaterTile later(w, kTile * Format::kBytes, row, count, col,
                      (n_tokens + kTokensTogether - 1) / kTokensTogether +
                          (w.interleaved != 0 ? 2 * kFetchesPerInterleaved : 0));
      unpack_units<Format, Units>(w, row, HWY_MIN(n, count), col, later, tile);
      if (count > n) {
        unpack_units<Format, Units>(w, row + n, count - n, col, later, tile + kUnits * n);
      }
      for (std::size_t t = 0, together; t < n_tokens; t += together) {
        if (!w.transposed) later.fetch();
        const std::uint8_t* xt[kTokensTogether] = {};
        const std::size_t left = n_tokens - t;
        together = left >= kTokensTogether ? kTokensTogether : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (std::size_t i = 0; i < together; ++i) {
          xt[i] = static_cast<const std::uint8_t*>(x[t + i]) + col / Units::kColumns * 4;
        }
        const auto multiply = [&](auto n_together) MIXTRAL_LAMBDA {
          multiply_units<Units, decltype(n_together)::value>(tile, xt, col == 0,
                                                             out + t * kMaxMatmulRows + begin);
        };
        if (together == kTokensTogether) {
          multiply(std::integral_constant<std::size_t, kTokensTogether>());
        } else if (together == 4) {
          multiply(std::integral_constant<std::size_t, 4>());
        } else if (together == 2) {
          multiply(std::integral_constant<std::size_t, 2>());
        } else {
          multiply(std::integral_constant<std::size_t, 1>());
        }
      }
    }
  }
}

// The sums r are those of a tile's units, of row r times x, for 4 rows of which load(r, i) loads units.
template <class Units, class Load>
HWY_INLINE void multiply_4_rows_of_units(const Load& load, const std::uint8_t* x, float* sums) {
  constexpr std::size_t kUnits = kTile / Units::kColumns;
  const DF df;
  const DU32 d32;
  const DU8 d8;
  for (std::size_t part = 0; part < kUnitSums; part += hn::Lanes(df), sums += hn::Lanes(df)) {
    VF a = hn::Zero(df), b = a, c = a, d = a;
    for (std::size_t i = part; i < kUnits; i += kUnitSums) {
      const auto xi = hn::BitCast(d32, hn::LoadU(d8, x + 4 * i));
      a = Units::add_product(a, load(0, i), xi), b = Units::add_product(b, load(1, i), xi);
      c = Units::add_product(c, load(2, i), xi), d = Units::add_product(d, load(3, i), xi);
    }
    hn::Store(a, df, sums), hn::Store(b, df, sums + kUnitSums);
    hn::Store(c, df, sums + 2 * kUnitSums), hn::Store(d, df, sums + 3 * kUnitSums);
  }
}

// As Kernels::matmul, for one token: a vector goes along a row, which is not interleaved.
template <class Format, class Units>
void matmul_one(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* x,
                float* out) {
  constexpr std::size_t kUnitBytes = Format::kBytes * Units::kColumns;
  constexpr std::size_t kRows = kMaxLanes;  // at a time
  const DF df;
  const DU8 d8;
  const DU32 d32;
  const std::size_t n = hn::Lanes(df);
  HWY_ALIGN float sums[kRows * kUnitSums];
  HWY_ALIGN std::uint32_t turned[kUnitSums * kMaxLanes];
  HWY_ALIGN std::uint8_t last[4][kTile * Format::kBytes];
  for (std::size_t begin = 0; begin < n_rows; begin += kRows) {
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      const std::size_t n_bytes = HWY_MIN(kTile, w.cols - col) * Format::kBytes;
      LaterTile later(w, kTile * Format::kBytes, first_row + begin, HWY_MIN(kRows, n_rows - begin),
                      col, 4);
      for (std::size_t r = 0; r < kRows; r += 4) {
        later.fetch();
        const std::uint8_t* data[4];
        for (std::size_t i = 0; i < 4; ++i) {  // the last row fills up
          const std::size_t row = first_row + HWY_MIN(begin + r + i, n_rows - 1);
          data[i] = w.data + row * w.row_bytes + col * Format::kBytes;
          if (n_bytes == sizeof last[i]) continue;
          std::memset(last[i], 0, sizeof last[i]);
          std::memcpy(last[i], data[i], n_bytes);
          data[i] = last[i];
        }
        const auto load = [&](std::size_t i, std::size_t unit) MIXTRAL_LAMBDA {
          const std::uint8_t* from = data[i] + unit * kUnitBytes;
          return Units::kColumns == 2 ? clear_tiny_pairs(hn::BitCast(d32, hn::LoadU(d8, from)))
                                      : hn::BitCast(d32, Format::load(df, from));
        };
        multiply_4_rows_of_units<Units>(
            load, static_cast<const std::uint8_t*>(x) + col / Units::kColumns * 4,
            sums + r * kUnitSums);
      }
      for (std::size_t r = 0; r < kRows; r += n) {
        transpose_words(reinterpret_cast<const std::uint8_t*>(sums + r * kUnitSums),
                        kUnitSums * sizeof(float), kUnitSums, turned);
        const auto sum_at = [&](std::size_t i) MIXTRAL_LAMBDA {
          return hn::BitCast(df, hn::Load(d32, turned + i * n));
        };
        auto sum = col == 0 ? sum_at(0) : hn::Add(hn::Load(df, out + begin + r), sum_at(0));
        for (std::size_t i = 1; i < kUnitSums; ++i) sum = hn::Add(sum, sum_at(i));
        hn::Store(sum, df, out + begin + r);
      }
    }
  }
}

// Adds one tile of two parts of interleaved rows of BF16, as many as there are lanes each, times kTokens (1 or
// 2) tokens to `out`, or begins with it: a vector goes along the rows.
template <class Units, std::size_t kTokens>
HWY_NOINLINE void multiply_interleaved(const std::uint8_t* const* parts,
                                       const std::uint8_t* const* x, bool begins, LaterTile& later,
                                       float* out) {
  // A class of pairs goes into two sums: of their first columns and their second, which follow each other, or
  // of every other pair, of which the second sum is added after the first of all classes.
  constexpr bool kLater = Units::kColumns == 2;
  const DF df;
  const DU32 d32;
  const std::size_t n = hn::Lanes(df);
  HWY_ALIGN float waiting[kPairClasses * 2 * kTokens * kMaxLanes];
  const auto sums_at = [&](std::size_t t, std::size_t part)
                           MIXTRAL_LAMBDA { return out + t * kMaxMatmulRows + part * n; };
  for (std::size_t c = 0; c < kPairClasses; ++c) {
    if (kTokens > 1 || kFetchesForOne) later.fetch();
    // Of a token and a part: the two sums.
    VF a00 = hn::Zero(df), b00 = a00, a01 = a00, b01 = a00;
    VF a10 = a00, b10 = a00, a11 = a00, b11 = a00;
    for (std::size_t i = 0; i < kPairsOfClass; i += 2) {
      const auto multiply = [&](auto second_pair) MIXTRAL_LAMBDA {
        constexpr std::size_t kSecond = decltype(second_pair)::value;
        const std::size_t place = c * kPairsOfClass + i + kSecond;
        const auto word = [&](std::size_t part) MIXTRAL_LAMBDA {
          const auto* words = reinterpret_cast<const std::uint32_t*>(parts[part]);
          const auto w = loaded_once(hn::Load(d32, words + place * n));
          return kLater ? clear_tiny_pairs(w) : w;
        };
        const auto w0 = word(0), w1 = word(1);
        const auto add = [&](VF& a0, VF& b0, VF& a1, VF& b1, std::size_t t) MIXTRAL_LAMBDA {
          const auto unit = [&](std::size_t u) MIXTRAL_LAMBDA {
            std::uint32_t bits;
            std::memcpy(&bits, x[t] + (pair_at(place) * 2 / Units::kColumns + u) * 4, 4);
            return Units::in_all_lanes(bits);
          };
          const auto first = unit(0);
          if (kLater) {
            VF &sum0 = kSecond == 0 ? a0 : b0, &sum1 = kSecond == 0 ? a1 : b1;
            sum0 = Units::add_product(sum0, w0, first);
            sum1 = Units::add_product(sum1, w1, first);
            return;
          }
          const auto second = unit(1);
          a0 = Units::add_product(a0, first_of_pair(w0), first);
          b0 = Units::add_product(b0, second_of_pair(w0), second);
          a1 = Units::add_product(a1, first_of_pair(w1), first);
          b1 = Units::add_product(b1, second_of_pair(w1), second);
        };
        add(a00, b00, a01, b01, 0);
        if (kTokens > 1) add(a10, b10, a11, b11, 1);
      };
      for_constants<2>(multiply);
    }
    const auto store = [&](VF a, VF b, std::size_t t, std::size_t part) MIXTRAL_LAMBDA {
      float* to = sums_at(t, part);
      const auto sum = begins && c == 0 ? a : hn::Add(hn::Load(df, to), a);
      hn::Store(kLater ? sum : hn::Add(sum, b), df, to);
      if (kLater) hn::Store(b, df, waiting + ((c * kTokens + t) * 2 + part) * n);
    };
    store(a00, b00, 0, 0), store(a01, b01, 0, 1);
    if (kTokens > 1) store(a10, b10, 1, 0), store(a11, b11, 1, 1);
  }
  for (std::size_t i = 0; kLater && i < 2 * kTokens; ++i) {
    float* to = sums_at(i / 2, i % 2);
    auto sum = hn::Load(df, to);
    for (std::size_t c = 0; c < kPairClasses; ++c) {
      sum = hn::Add(sum, hn::Load(df, waiting + (c * 2 * kTokens + i) * n));
    }
    hn::Store(sum, df, to);
  }
}

// As Kernels::matmul, for interleaved rows of BF16 and few tokens, multiplied as they are read.
template <class Units>
void matmul_interleaved(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                        const void* const* x, std::size_t n_tokens, float* out) {
  const std::size_t n = hn::Lanes(DF());
  const std::size_t n_fetches = kPairClasses * ((n_tokens + 1) / 2);
  for (std::size_t begin = 0; begin < n_rows; begin += 2 * n) {
    const std::size_t row = first_row + begin, count = HWY_MIN(2 * n, n_rows - begin);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      LaterTile later(w, kTile * 2, row, count, col, n_fetches);
      const std::size_t second = count > n ? n : 0;  // without others the same rows, of no use
      const std::uint8_t* parts[2] = {interleaved_tile(w, kTile * 2, row, col),
                                      interleaved_tile(w, kTile * 2, row + second, col)};
      const auto units = [&](std::size_t t) MIXTRAL_LAMBDA {
        return static_cast<const std::uint8_t*>(x[t]) + col / Units::kColumns * 4;
      };
      float* sums = out + begin;
      for (std::size_t t = 0; t < n_tokens; t += 2, sums += 2 * kMaxMatmulRows) {
        const std::uint8_t* xt[2] = {units(t), units(HWY_MIN(t + 1, n_tokens - 1))};
        const auto multiply =
            t + 1 < n_tokens ? multiply_interleaved<Units, 2> : multiply_interleaved<Units, 1>;
        multiply(parts, xt, col == 0, later, sums);
      }
    }
  }
}

template <class Format, class Units>
void matmul_units(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                  std::size_t n_tokens, float* out) {
  if constexpr (kInterleaves<Format>) {
    if (n_tokens <= kMaxInterleavedTokens<Units> && w.interleaved != 0) {
      return matmul_interleaved<Units>(w, first_row, n_rows, x, n_tokens, out);
    }
  }
  if (n_tokens == 1 && !w.transposed) {
    return matmul_one<Format, Units>(w, first_row, n_rows, x[0], out);
  }
  matmul_many<Format, Units>(w, first_row, n_rows, x, n_tokens, out);
}

#if !MIXTRAL_TAKES_COMMON
void matmul_floats(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                   std::size_t n_tokens, float* out) {
  if (w.format == BlockFormat::f32) {
    matmul_units<F32, Columns>(w, first_row, n_rows, x, n_tokens, out);
  } else if (w.format == BlockFormat::f16) {
    matmul_units<F16, Columns>(w, first_row, n_rows, x, n_tokens, out);
  } else {
    matmul_units<Bf16, Columns>(w, first_row, n_rows, x, n_tokens, out);
  }
}

// Of BF16 and rounded tokens.
void matmul_pairs(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                  std::size_t n_tokens, float* out) {
  matmul_units<Bf16, Pairs>(w, first_row, n_rows, x, n_tokens, out);
}
#endif

void matmul_bf16(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                 std::size_t n_tokens, float* out) {
#if MIXTRAL_BF16_DOT
  if (DotPairs::cpu_has_it()) {
    return matmul_units<Bf16, DotPairs>(w, first_row, n_rows, x, n_tokens, out);
  }
#endif
  common::matmul_pairs(w, first_row, n_rows, x, n_tokens, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
