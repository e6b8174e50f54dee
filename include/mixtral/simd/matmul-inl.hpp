// Per target: the choice of the code that multiplies a format.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct MatmulVisitor {
  const Matrix& w;
  std::size_t first_row, n_rows;
  const void* const* x;
  std::size_t n_tokens;
  float* out;

  template <class Format>
  void floating() const {
    common::matmul_floats(w, first_row, n_rows, x, n_tokens, out);
  }
  template <class Format>
  void quantized() const {
    matmul_rows<Format>(w, first_row, n_rows, x, n_tokens, out);
  }
};

void matmul(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
            std::size_t n_tokens, float* out) {
  visit_format(w.format, MatmulVisitor{w, first_row, n_rows, x, n_tokens, out});
}

struct MatmulGroupsVisitor {
  const Matrix& w;
  std::size_t first_row, n_rows;
  const std::uint8_t* groups;
  std::size_t n_tokens;
  float* out;

  template <class Format>
  void floating() const {}  // there are no groups of floats
  template <class Format>
  void quantized() const {
    matmul_groups_of<DotKindOf<Format>>(w, unpacker<Format>(), first_row, n_rows, groups, n_tokens,
                                        out);
  }
};

void matmul_groups(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                   const std::uint8_t* groups, std::size_t n_tokens, float* out) {
  visit_format(w.format, MatmulGroupsVisitor{w, first_row, n_rows, groups, n_tokens, out});
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
