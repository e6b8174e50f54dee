// The transformer, as a sequence of stages made of independent chunks.
//
// One pass takes any number of tokens, each with its own position and KV cache. A stage's chunks may
// run in any order on any threads; a stage begins when the one before is complete. Whoever drives
// the pass decides how: all chunks on a pool, or a few at a time between two frames of a game.
#ifndef MIXTRAL_NETWORK_FORWARD_PASS_HPP_
#define MIXTRAL_NETWORK_FORWARD_PASS_HPP_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>

#include "mixtral/impl/model.hpp"
#include "mixtral/network/activations.hpp"
#include "mixtral/network/finite.hpp"
#include "mixtral/network/kv_cache.hpp"
#include "mixtral/network/portable_math.hpp"
#include "mixtral/network/router.hpp"
#include "mixtral/observer.hpp"

namespace mixtral::detail {

// One token of a pass.
struct PassRow {
  Token token = 0;
  std::uint32_t position = 0;  // keys and values before it are in `past`, or computed in this pass
  std::uint64_t rotary_position = 0;  // the same, unless the past was shortened in between
  const KvPast* past = nullptr;
  float* logits = nullptr;  // where the logits that follow the token are put; null: nowhere
};

// Where a pass first met numbers that are infinite, NaN, or so large that their squares are. Nothing after
// them is right; where activations are quantised, they would not even be seen any more.
struct NotFinite {
  std::size_t row;      // of the pass
  Part part;            // embedding, attention, router, experts or output
  std::uint32_t layer;  // unless `part` is embedding or output
};

class ForwardPass {
 public:
  // Plans memory for passes of up to max_rows tokens, in which so many sessions want logits.
  void take(Slab& slab, const ModelData& model, std::size_t max_rows, std::size_t n_sessions) {
    model_ = &model;
    const Config& config = model.config;
    const std::size_t k = config.n_experts_used;
    rows_ = slab.take<PassRow>(max_rows);
    x_ = slab.take<float>(max_rows * config.dim);
    faults_ = slab.take<Fault>(max_rows);
    const Forms forms = wanted_forms();
    normed_.take(slab, kernels(), max_rows, config.dim, forms.normed);
    qkv_ = slab.take<float>(max_rows * qkv_width());
    cos2_ = slab.take<float>(max_rows * config.head_size);
    sin2_ = slab.take<float>(max_rows * config.head_size);
    attention_.take(slab, kernels(), max_rows, config.q_dim(), forms.attention);
    router_logits_ = slab.take<float>(max_rows * config.n_experts);
    assignment_.take(slab, max_rows, config.n_experts, k);
    const std::size_t places = Assignment::n_places(max_rows, config.n_experts, k, kernels());
    expert_inputs_.take(slab, kernels(), kernels().in_groups(max_rows) ? places : 0, config.dim,
                        forms.expert_groups);
    hidden_.take(slab, kernels(), places, config.hidden_dim, forms.hidden);
    shown_ = slab.take<float>(config.hidden_dim);
    most_logit_rows_ =
        std::min(max_rows, n_sessions > kLogitRows / 2 ? kLogitRows : kLogitRows / 2);
    final_.take(slab, kernels(), most_logit_rows_, config.dim, forms.final);
    logits_ = slab.take<float>(most_logit_rows_ * config.vocab_size);
  }

  // Where the caller puts the tokens of the next pass, max_rows at most.
  PassRow* rows() const noexcept { return rows_; }

  void begin(std::size_t n_rows, bool all_logits) {
    n_rows_ = n_rows;
    all_logits_ = all_logits;
    shortened_ = false;
    not_finite_.reset();
    faulty_hidden_.store(kNoRow, std::memory_order_relaxed);
    std::size_t depth = 1;
    for (std::size_t row = 0; row < n_rows; ++row) {
      depth = std::max(depth, std::size_t{rows_[row].position} + 1);
    }
    // As many rows as leave work for many threads and a chunk short enough for a slice of time.
    const std::size_t for_threads = n_rows * model_->config.n_kv_heads / kAttentionChunks;
    attention_rows_ = std::min({kAttentionWork / depth, for_threads, simd::kMaxQueries});
    attention_rows_ = std::max<std::size_t>(attention_rows_, 1);
    layer_ = 0;
    logits_row_ = 0;
    stage_ = Stage::embed;
  }

  bool done() const noexcept { return stage_ == Stage::done; }

  std::size_t n_chunks() const noexcept {
    const Config& config = model_->config;
    switch (stage_) {
      case Stage::embed:
      case Stage::attention_norm:
      case Stage::cache:
      case Stage::attention_complete:
      case Stage::router: return n_rows_;
      case Stage::qkv: return n_row_chunks(config.q_dim()) + 2 * n_row_chunks(config.kv_dim());
      case Stage::attention: return attention_groups() * config.n_kv_heads;
      case Stage::attention_output: return n_row_chunks(config.dim);
      case Stage::experts_pack: return assignment_.n_active();
      case Stage::experts_up: return assignment_.n_active() * n_row_chunks(config.hidden_dim);
      case Stage::experts_down: return n_row_chunks(config.dim);  // of one expert
      case Stage::final_norm: return n_logit_rows_;
      case Stage::output: return n_row_chunks(config.vocab_size);
      case Stage::done: return 0;
    }
    return 0;
  }

  // Does one chunk of the current stage; different chunks may run at the same time.
  void run_chunk(std::size_t i) const {
    switch (stage_) {
      case Stage::embed: return embed(i);
      case Stage::attention_norm:
        return normalize(i, layer().attention_norm, kernels().in_groups(n_rows_));
      case Stage::qkv: return qkv(i);
      case Stage::cache: return rotate_and_cache(i);
      case Stage::attention: return attend(i);
      case Stage::attention_complete:
        faults_[i] = fault_of(all_finite(attention_.row(i), model_->config.q_dim()));
        return attention_.complete_row(i, kernels().in_groups(n_rows_));
      case Stage::attention_output: return attention_output(i);
      case Stage::router: return route(i);
      case Stage::experts_pack: return experts_pack(i);
      case Stage::experts_up: return experts_up(i);
      case Stage::experts_down: return experts_down(i);
      case Stage::final_norm: return final_norm(i);
      case Stage::output: return output(i);
      case Stage::done: return;
    }
  }

  // Tells where numbers stopped being finite, if they did: the pass is of no use then. Known after the
  // next_stage() that follows the layer, or the output matrix, that they came from.
  const std::optional<NotFinite>& not_finite() const noexcept { return not_finite_; }

  // To be called once all chunks of the current stage have run, unless not_finite(). The observer may
  // be null.
  void next_stage(Observer* observer) {
    observer_ = observer;
    find_not_finite();
    if (not_finite_) return;
    if (observer_ != nullptr && observer_->wants_inputs()) show_inputs();
    switch (stage_) {
      case Stage::cache:
        if (layer_ + 1 < model_->config.n_layers) break;
        if (observer_ == nullptr || !observer_->wants_all_tokens()) leave_rows_with_logits();
        if (n_rows_ != 0) break;
        stage_ = Stage::done;
        return;
      case Stage::router: finish_router(); break;
      case Stage::experts_down:
        if (++down_ < assignment_.n_active()) return;
        if (++layer_ < model_->config.n_layers) {
          stage_ = Stage::attention_norm;
        } else {
          begin_logits();
        }
        return;
      case Stage::output: finish_logits(); return;
      case Stage::done: return;
      default: break;
    }
    stage_ = static_cast<Stage>(static_cast<int>(stage_) + 1);
  }

  // What the current stage belongs to, and in which layer.
  Part part() const noexcept {
    switch (stage_) {
      case Stage::embed: return Part::embedding;
      case Stage::attention_norm:
      case Stage::qkv:
      case Stage::cache:
      case Stage::attention_complete:
      case Stage::attention_output: return Part::projections;
      case Stage::attention: return Part::attention;
      case Stage::router: return Part::router;
      case Stage::experts_pack:
      case Stage::experts_up:
      case Stage::experts_down: return Part::experts;
      case Stage::final_norm:
      case Stage::output:
      case Stage::done: break;
    }
    return Part::output;
  }
  std::uint32_t layer_number() const noexcept { return static_cast<std::uint32_t>(layer_); }

  // The kind of the current stage, below kStageKinds: chunks of the same kind take about as long.
  std::size_t stage_kind() const noexcept {
    return static_cast<std::size_t>(stage_) + (shortened_ ? kStages : 0);
  }

 private:
  enum class Stage {
    embed,
    attention_norm,
    qkv,
    cache,
    attention,
    attention_complete,
    attention_output,
    router,
    experts_pack,
    experts_up,
    experts_down,
    final_norm,
    output,
    done,
  };

 public:
  static constexpr std::size_t kStages = static_cast<std::size_t>(Stage::done) + 1;
  static constexpr std::size_t kStageKinds = 2 * kStages;

 private:
  static constexpr std::size_t kNoRow = static_cast<std::size_t>(-1);
  // Logits are computed for this many rows at a time, one group of tokens, or half as many.
  static constexpr std::size_t kLogitRows = simd::kMaxLanes;
  // Attention is divided into so many chunks at least, if there is enough of it; a chunk of several rows has
  // so many positions at most: about a millisecond's work.
  static constexpr std::size_t kAttentionChunks = 64, kAttentionWork = 65536;

  const simd::Kernels& kernels() const noexcept { return *model_->kernels; }
  const LayerWeights& layer() const noexcept { return model_->weights.layers[layer_]; }
  std::size_t qkv_width() const noexcept {
    return std::size_t{model_->config.q_dim()} + 2 * std::size_t{model_->config.kv_dim()};
  }
  float* x(std::size_t row) const noexcept { return x_ + row * model_->config.dim; }
  float* qkv_row(std::size_t row) const noexcept { return qkv_ + row * qkv_width(); }

  void embed(std::size_t row) const {
    const Config& config = model_->config;
    kernels().decode_rows(model_->weights.token_embedding,
                          static_cast<std::size_t>(rows_[row].token), 1, x(row));
    for (std::size_t i = 0; i < config.head_size / 2; ++i) {
      const double angle =
          static_cast<double>(rows_[row].rotary_position) * model_->rope_frequencies[i];
      double sine = 0.0, cosine = 0.0;
      portable::sin_and_cos(angle, sine, cosine);
      float* cos2 = cos2_ + row * config.head_size + 2 * i;
      float* sin2 = sin2_ + row * config.head_size + 2 * i;
      cos2[0] = cos2[1] = static_cast<float>(cosine);
      sin2[0] = sin2[1] = static_cast<float>(sine);
    }
  }

  void normalize(std::size_t row, const float* weight, bool grouped) const {
    const std::size_t dim = model_->config.dim;
    kernels().rms_norm(x(row), weight, model_->config.norm_epsilon, dim, normed_.row(row));
    faults_[row] = fault_of_norm(x(row), normed_.row(row));
    normed_.complete_row(row, grouped);
  }

  // What a stage found wrong with a row.
  enum class Fault : std::uint8_t {
    none,
    input,   // the residual stream that it read
    result,  // what it made of that
  };
  static Fault fault_of(bool result_is_finite) noexcept {
    return result_is_finite ? Fault::none : Fault::result;
  }
  Fault fault_of_norm(const float* input, const float* result) const noexcept {
    const std::size_t dim = model_->config.dim;
    return all_square_finite(input, dim) ? fault_of(all_finite(result, dim)) : Fault::input;
  }

  // Chunks of wq first, then wk, then wv.
  void qkv(std::size_t chunk) const {
    const simd::Matrix* w = &layer().wq;
    std::size_t offset = 0;
    for (const simd::Matrix* after : {&layer().wk, &layer().wv}) {
      if (chunk < n_row_chunks(w->rows)) break;
      chunk -= n_row_chunks(w->rows);
      offset += w->rows;
      w = after;
    }
    const bool halves = model_->config.head_order == HeadOrder::halves && w != &layer().wv;
    multiply_chunk(kernels(), *w, chunk, consecutive_rows(normed_, 0, n_rows_), n_rows_,
                   [&](std::size_t t, std::size_t first, const float* values, std::size_t n) {
                     float* out = qkv_row(t) + offset;
                     if (!halves) {
                       std::memcpy(out + first, values, n * sizeof(float));
                       return;
                     }
                     for (std::size_t i = 0; i < n; ++i)
                       out[interleaved_row(first + i)] = values[i];
                   });
  }

  // Where row `row` of a wq or wk in the order HeadOrder::halves belongs.
  std::size_t interleaved_row(std::size_t row) const noexcept {
    const std::size_t size = model_->config.head_size;
    const std::size_t i = row % size;
    return row - i + (i < size / 2 ? 2 * i : 2 * (i - size / 2) + 1);
  }

  void rotate_and_cache(std::size_t row) const {
    const Config& config = model_->config;
    const std::size_t size = config.head_size;
    const float* cos2 = cos2_ + row * size;
    const float* sin2 = sin2_ + row * size;
    float* q = qkv_row(row);
    float* k = q + config.q_dim();
    const float* v = k + config.kv_dim();
    faults_[row] = fault_of(all_finite(q, qkv_width()));
    for (std::size_t h = 0; h < config.n_heads; ++h)
      kernels().rotate(q + h * size, cos2, sin2, size);
    const PassRow& info = rows_[row];
    for (std::size_t h = 0; h < config.n_kv_heads; ++h) {
      kernels().rotate(k + h * size, cos2, sin2, size);
      const BlockFormat format = info.past->format();
      kernels().store_kv(format, k + h * size, size, info.past->key(layer_, h, info.position));
      kernels().store_kv(format, v + h * size, size, info.past->value(layer_, h, info.position));
    }
  }

  // In the last layer, once keys and values are there, nothing reads what becomes of a token but its logits:
  // the rows that want some move together, and the others are left out of the rest of the pass.
  void leave_rows_with_logits() {
    const Config& config = model_->config;
    if (all_logits_) return;
    std::size_t n = 0;
    for (std::size_t row = 0; row < n_rows_; ++row) {
      if (rows_[row].logits == nullptr) continue;
      if (row != n) {
        rows_[n] = rows_[row];
        std::memcpy(x(n), x(row), config.dim * sizeof(float));
        std::memcpy(qkv_row(n), qkv_row(row), config.q_dim() * sizeof(float));
      }
      ++n;
    }
    shortened_ = n != n_rows_;
    n_rows_ = n;
  }

  // One chunk is one key/value head, with the query heads that share it, and a few tokens.
  void attend(std::size_t chunk) const {
    const Config& config = model_->config;
    const std::size_t n_groups = attention_groups();
    const std::size_t kv_head = chunk / n_groups;
    const std::size_t group = config.n_heads / config.n_kv_heads;
    const std::size_t size = config.head_size;
    const std::size_t window = config.sliding_window;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    const std::size_t h = kv_head * group;
    const std::size_t begin = chunk % n_groups * attention_rows_;
    const std::size_t last = std::min(begin + attention_rows_, n_rows_);
    simd::Query queries[simd::kMaxQueries];
    std::size_t n = 0;
    for (std::size_t row = begin; row < last; ++row) {
      const std::size_t end = std::size_t{rows_[row].position} + 1;
      const std::size_t first = window == 0 || end <= window ? 0 : end - window;
      queries[n++] = {qkv_row(row) + h * size, attention_.row(row) + h * size, first, end};
      if (row + 1 < last && rows_[row + 1].past == rows_[row].past) continue;
      kernels().attend(queries, n, group, rows_[row].past->head(layer_, kv_head), size, scale);
      n = 0;
    }
  }
  std::size_t attention_groups() const noexcept {
    return (n_rows_ + attention_rows_ - 1) / attention_rows_;
  }

  void attention_output(std::size_t chunk) const {
    multiply_chunk(kernels(), layer().wo, chunk, consecutive_rows(attention_, 0, n_rows_), n_rows_,
                   [&](std::size_t t, std::size_t first, const float* values, std::size_t n) {
                     kernels().add_scaled(1.0f, values, n, x(t) + first);
                   });
  }

  void route(std::size_t row) const {
    const Config& config = model_->config;
    normalize(row, layer().ffn_norm, false);
    if (!config.has_router()) {
      assignment_.experts(row)[0] = 0;
      assignment_.weights(row)[0] = 1.0f;
      return;
    }
    float* logits = router_logits_ + row * config.n_experts;
    const auto this_row = [row](std::size_t) { return row; };
    for (std::size_t chunk = 0; chunk < n_row_chunks(config.n_experts); ++chunk) {
      multiply_chunk(kernels(), layer().router, chunk,
                     Inputs<decltype(this_row)>{normed_, this_row, nullptr}, 1,
                     [&](std::size_t, std::size_t first, const float* values, std::size_t n) {
                       std::memcpy(logits + first, values, n * sizeof(float));
                     });
    }
    if (faults_[row] == Fault::none) faults_[row] = fault_of(all_finite(logits, config.n_experts));
    select_experts(logits, config.n_experts, config.n_experts_used, assignment_.experts(row),
                   assignment_.weights(row));
  }

  void finish_router() {
    assignment_.group(n_rows_, kernels());
    down_ = 0;
    if (observer_ == nullptr || !model_->config.has_router()) return;
    const std::size_t k = model_->config.n_experts_used;
    for (std::size_t row = 0; row < n_rows_; ++row) {
      observer_->on_router(static_cast<std::uint32_t>(layer_), rows_[row].position,
                           Span<const std::uint32_t>(assignment_.experts(row), k),
                           Span<const float>(assignment_.weights(row), k));
    }
  }

  // Tells the observer what the stages after this one multiply matrices with.
  void show_inputs() const {
    const auto l = static_cast<std::uint32_t>(layer_);
    const auto show = [&](Role role, std::size_t expert, const float* input, std::size_t width) {
      observer_->on_input(role, l, static_cast<std::uint32_t>(expert),
                          Span<const float>(input, width));
    };
    const Config& config = model_->config;
    switch (stage_) {
      case Stage::attention_norm:
        for (std::size_t r = 0; r < n_rows_; ++r) show(Role::wq, 0, normed_.row(r), config.dim);
        return;
      case Stage::attention:
        for (std::size_t r = 0; r < n_rows_; ++r) {
          show(Role::wo, 0, attention_.row(r), config.q_dim());
        }
        return;
      case Stage::experts_up:  // normed_ and hidden_ are as they were or will be used
        for (std::size_t i = 0; i < assignment_.n_active(); ++i) {
          const std::size_t e = assignment_.active(i);
          for (std::size_t t = 0; t < assignment_.count(e); ++t) {
            const std::size_t slot = assignment_.begin(e) + t;
            show(Role::w1, e, normed_.row(assignment_.slot_row(slot)), config.dim);
            show(Role::w2, e, hidden_row(e, t), config.hidden_dim);
          }
        }
        return;
      case Stage::final_norm:
        for (std::size_t i = 0; i < n_logit_rows_; ++i) {
          observer_->on_input(Role::output, 0, 0, Span<const float>(final_.row(i), config.dim));
        }
        return;
      default: return;
    }
  }

  // What w2 of an expert is multiplied with for its token t.
  const float* hidden_row(std::size_t e, std::size_t t) const {
    hidden_.read_row(layer().experts[e].w2, assignment_.place(e) + t,
                     kernels().in_groups(assignment_.count(e)), shown_);
    return shown_;
  }

  // What the model's matrices want of what they are multiplied with.
  struct Forms {
    InputForms normed, attention, expert_groups, hidden, final;
  };
  Forms wanted_forms() const noexcept {
    Forms forms;
    for (InputForms* f : {&forms.normed, &forms.attention, &forms.hidden, &forms.final}) {
      f->rounds = model_->bf16_activations;
    }
    // Norms and attention give floats.
    forms.normed.floats = forms.attention.floats = forms.final.floats = true;
    for (std::size_t l = 0; l < model_->config.n_layers; ++l) {
      const LayerWeights& layer = model_->weights.layers[l];
      for (const simd::Matrix* w : {&layer.wq, &layer.wk, &layer.wv}) forms.normed.add(*w);
      if (model_->config.has_router()) forms.normed.add(layer.router);
      forms.attention.add(layer.wo);
      for (std::size_t e = 0; e < model_->config.n_experts; ++e) {
        const ExpertWeights& expert = layer.experts[e];
        for (const simd::Matrix* w : {&expert.w1, &expert.w3}) {
          forms.normed.add(*w);
          if (is_quantized(*w)) forms.expert_groups.quantized = true;
        }
        forms.hidden.add(expert.w2);
      }
    }
    forms.final.add(model_->weights.output);
    return forms;
  }

  // Brings an expert's tokens together, if they are many.
  void experts_pack(std::size_t active) const {
    const std::size_t e = assignment_.active(active);
    const std::size_t count = assignment_.count(e);
    const ExpertWeights& expert = layer().experts[e];
    if (!kernels().in_groups(count) || (!is_quantized(expert.w1) && !is_quantized(expert.w3)))
      return;
    const std::size_t lanes = normed_.lanes();
    for (std::size_t t = 0; t < count; t += lanes) {
      const std::uint8_t* tokens[simd::kMaxLanes];
      const std::size_t n = std::min(lanes, count - t);
      for (std::size_t i = 0; i < n; ++i) {
        tokens[i] = normed_.token(assignment_.slot_row(assignment_.begin(e) + t + i));
      }
      kernels().pack(tokens, n, model_->config.dim,
                     expert_inputs_.groups(assignment_.place(e) + t));
    }
  }

  // hidden = silu(w1 x) * w3 x for the tokens of one expert, at once in the form that w2 wants.
  void experts_up(std::size_t chunk) const {
    const std::size_t chunks = n_row_chunks(model_->config.hidden_dim);
    const std::size_t e = assignment_.active(chunk / chunks);
    const ExpertWeights& expert = layer().experts[e];
    const std::size_t begin = assignment_.begin(e);
    const std::size_t place = assignment_.place(e);
    const std::size_t n = assignment_.count(e);
    const auto row_of = [&](std::size_t t) { return assignment_.slot_row(begin + t); };
    const Inputs<decltype(row_of)> inputs{
        normed_, row_of, kernels().in_groups(n) ? expert_inputs_.groups(place) : nullptr};
    const RowRange rows = chunk_rows(expert.w1, chunk % chunks);
    Products gate, up;
    for_each_part(n, [&](std::size_t first, std::size_t count) {
      inputs.multiply(kernels(), expert.w1, rows, first, count, gate);
      inputs.multiply(kernels(), expert.w3, rows, first, count, up);
      for (std::size_t t = 0; t < count; ++t) {
        kernels().swiglu(gate.of(t), up.of(t), rows.n);
        if (!all_finite(gate.of(t), rows.n)) note_faulty_hidden(row_of(first + t));
      }
      hidden_.put_rows(expert.w2, gate.values, kRowsPerChunk, rows.first, rows.n, place + first,
                       count, kernels().in_groups(n));
    });
  }

  // x += weight * (w2 hidden) for the tokens of one expert; a stage for each, in the order of their
  // numbers, since a row's sum has to come about in one order.
  void experts_down(std::size_t chunk) const {
    const std::size_t e = assignment_.active(down_);
    const std::size_t begin = assignment_.begin(e);
    const std::size_t n = assignment_.count(e);
    multiply_chunk(
        kernels(), layer().experts[e].w2, chunk, consecutive_rows(hidden_, assignment_.place(e), n),
        n, [&](std::size_t t, std::size_t first, const float* values, std::size_t n_values) {
          kernels().add_scaled(assignment_.slot_weight(begin + t), values, n_values,
                               x(assignment_.slot_row(begin + t)) + first);
        });
  }

  // Collects the next rows that want logits, or ends the pass.
  void begin_logits() {
    n_logit_rows_ = 0;
    while (logits_row_ < n_rows_ && n_logit_rows_ < most_logit_rows_) {
      if (all_logits_ || rows_[logits_row_].logits != nullptr)
        logit_rows_[n_logit_rows_++] = logits_row_;
      ++logits_row_;
    }
    stage_ = n_logit_rows_ == 0 ? Stage::done : Stage::final_norm;
  }

  // Several chunks may find the same row, or different ones, at the same time: the first row counts.
  void note_faulty_hidden(std::size_t row) const noexcept {
    std::size_t first = faulty_hidden_.load(std::memory_order_relaxed);
    while (row < first &&
           !faulty_hidden_.compare_exchange_weak(first, row, std::memory_order_relaxed)) {
    }
  }

  // Looks at what the chunks of the stage have found.
  void find_not_finite() {
    const auto l = static_cast<std::uint32_t>(layer_);
    std::size_t n = n_rows_;
    Part part = Part::attention;
    switch (stage_) {
      case Stage::attention_norm:
      case Stage::cache:
      case Stage::attention_complete: break;
      case Stage::router: part = Part::router; break;
      case Stage::experts_up:
        if (const std::size_t row = faulty_hidden_.load(); row != kNoRow) {
          not_finite_ = NotFinite{row, Part::experts, l};
        }
        return;
      case Stage::final_norm:
        n = n_logit_rows_;
        part = Part::output;
        break;
      default: return;
    }
    const Fault* const begin = faults_;
    const Fault* const found =
        std::find_if(begin, begin + n, [](Fault fault) { return fault != Fault::none; });
    if (found == begin + n) return;
    const auto i = static_cast<std::size_t>(found - begin);
    const std::size_t row = stage_ == Stage::final_norm ? logit_rows_[i] : i;
    if (*found == Fault::result) {
      not_finite_ = NotFinite{row, part, l};
    } else if (stage_ == Stage::router) {  // what attention has added
      not_finite_ = NotFinite{row, Part::attention, l};
    } else if (layer_ == 0) {
      not_finite_ = NotFinite{row, Part::embedding, 0};
    } else {
      not_finite_ = NotFinite{row, Part::experts, l - 1};
    }
  }

  void final_norm(std::size_t i) const {
    kernels().rms_norm(x(logit_rows_[i]), model_->weights.output_norm, model_->config.norm_epsilon,
                       model_->config.dim, final_.row(i));
    faults_[i] = fault_of_norm(x(logit_rows_[i]), final_.row(i));
    final_.complete_row(i, kernels().in_groups(n_logit_rows_));
  }

  void output(std::size_t chunk) const {
    const std::size_t vocab_size = model_->config.vocab_size;
    multiply_chunk(kernels(), model_->weights.output, chunk,
                   consecutive_rows(final_, 0, n_logit_rows_), n_logit_rows_,
                   [&](std::size_t t, std::size_t first, const float* values, std::size_t n) {
                     std::memcpy(logits_ + t * vocab_size + first, values, n * sizeof(float));
                   });
  }

  void finish_logits() {
    const std::size_t vocab_size = model_->config.vocab_size;
    for (std::size_t i = 0; i < n_logit_rows_; ++i) {
      const float* logits = logits_ + i * vocab_size;
      const PassRow& row = rows_[logit_rows_[i]];
      if (!all_finite(logits, vocab_size)) {
        not_finite_ = NotFinite{logit_rows_[i], Part::output, 0};
        return;
      }
      if (row.logits != nullptr) std::memcpy(row.logits, logits, vocab_size * sizeof(float));
      if (observer_ != nullptr) {
        observer_->on_logits(row.position, Span<const float>(logits, vocab_size));
      }
    }
    begin_logits();
  }

  const ModelData* model_ = nullptr;
  Observer* observer_ = nullptr;
  Stage stage_ = Stage::done;
  std::size_t layer_ = 0;
  std::size_t n_rows_ = 0;
  bool shortened_ = false;          // n_rows_ are fewer than there were
  std::size_t attention_rows_ = 1;  // of a chunk
  bool all_logits_ = false;
  std::size_t down_ = 0;                     // which active expert experts_down is at
  std::size_t logits_row_ = 0;               // the first row not yet looked at for logits
  std::size_t logit_rows_[kLogitRows] = {};  // the rows whose logits are being computed
  std::size_t n_logit_rows_ = 0;
  std::size_t most_logit_rows_ = 1;

  std::optional<NotFinite> not_finite_;
  // The first row that experts_up has found to be faulty; kNoRow if none is.
  mutable std::atomic<std::size_t> faulty_hidden_{kNoRow};

  PassRow* rows_ = nullptr;
  float* x_ = nullptr;       // the residual stream, [row][dim]
  Fault* faults_ = nullptr;  // what the stage has found; [row] or [logit row]
  Activations normed_;       // input of the projections and experts, [row][dim]
  float* qkv_ = nullptr;     // [row][q_dim + kv_dim + kv_dim]
  float* cos2_ = nullptr;    // rotary factors, [row][head_size], each twice
  float* sin2_ = nullptr;
  Activations attention_;           // output of attention, [row][q_dim]
  float* router_logits_ = nullptr;  // [row][n_experts]
  Assignment assignment_;
  Activations expert_inputs_;  // normed_ in groups for the experts, [place][dim]
  Activations hidden_;         // inside the experts, [place][hidden_dim]
  float* shown_ = nullptr;     // a row of hidden_ for an observer
  Activations final_;          // input of the output matrix, [logit row][dim]
  float* logits_ = nullptr;    // [logit row][vocab_size]
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_FORWARD_PASS_HPP_
