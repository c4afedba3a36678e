#include "program.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trimtab {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Activation kUnbounded{-kInfinity, kInfinity};

struct Range {
  size_t first, last;
};

Range share(size_t count, const Task& t) { return {count * t.thread / t.threads, count * (t.thread + 1) / t.threads}; }

size_t element_bytes(const Operand& o) { return o.is_u8 ? 1 : sizeof(float); }

Operand advanced(Operand o, size_t elements) {
  o.data = static_cast<char*>(o.data) + elements * element_bytes(o);
  return o;
}

// The bounds of an activation among the integers of a store, relative to the zero point.
void bound_integers(Store& s) {
  const double zero = s.out.zero, top = s.out.top;
  s.low = static_cast<float>(s.floor == 0 ? 0.0 : -zero);
  s.high = static_cast<float>(top - zero);
  if (std::isfinite(s.ceil))
    s.high = static_cast<float>(std::min(top - zero, std::nearbyint(static_cast<double>(s.ceil) / s.out.scale)));
}

// Whether packing with saturation gives the bounds of a store, of accumulators within 2^30 or their sums with a residual, for
// which rounding them has to fit an int32.
bool saturates(const Store& s, float largest_scale) {
  if (s.out.zero != 0 || s.out.top != 255) return false;
  if (s.requantize) return s.low == 0 && s.high >= 255 && largest_scale <= 0.5f;
  const bool sums = s.has_residual && s.residual.is_u8 && s.out.is_u8;
  return sums && largest_scale * s.out.inverse <= 0.5f && s.residual.scale * s.out.inverse <= 0x1p20f;
}

}  // namespace

Program::Program(const Kernels& kernels, int threads, int batch)
    : kernels_(kernels), batch_(batch), level_(kernels.name), threads_(threads) {}

int Program::add_tensor(int c, int h, int w, size_t offset, bool is_u8, float scale, int zero,
                        int bits) {
  const auto inverse = static_cast<float>(1.0 / static_cast<double>(scale));
  tensors_.push_back({c, h, w, offset, {nullptr, scale, inverse, zero, (1 << bits) - 1, is_u8}});
  return static_cast<int>(tensors_.size()) - 1;
}

Operand Program::operand(int i) const {
  Operand o = tensors_[i].operand;
  o.data = arena_.data() + tensors_[i].offset;
  return o;
}

Store Program::store(int out, int residual, Activation activation) const {
  Store s{};
  s.out = operand(out);
  s.has_residual = residual >= 0;
  if (s.has_residual) s.residual = operand(residual);
  s.floor = activation.floor;
  s.ceil = activation.ceil;
  s.curve = activation.curve;
  return s;
}

template <class Body>
void Program::add_step(const std::string& name, int output, Body body) {
  steps_.push_back({name, output, std::move(body), nullptr, -1, nullptr});
}

void Program::add_conv(const std::string& name, int in, int out, int residual, const ConvSpec& spec,
                       Activation activation) {
  const Operand from = tensors_[in].operand, to = tensors_[out].operand;
  const bool requantize =
      spec.int_weights != nullptr && residual < 0 && to.is_u8 && activation.curve == Curve::kNone;
  auto call = std::make_shared<ConvCall>();
  call->packed = pack_conv(spec, kernels_, from, to, requantize, batch_, threads_.size());
  const PackedConv& packed = call->packed;
  layer_kernels_.emplace_back(name, describe(packed));
  weight_bytes_ += packed.weights.bytes();
  scratch_per_thread_ = std::max(scratch_per_thread_, packed.scratch_bytes);
  call->kernel = packed.depthwise ? (packed.integer ? kernels_.depthwise_int : kernels_.depthwise_float)
                                  : (packed.integer ? kernels_.conv_int : kernels_.conv_float);
  const auto* const scale = reinterpret_cast<const float*>(packed.scale.data());
  const float largest_scale =
      packed.integer ? *std::max_element(scale, scale + packed.scale.bytes() / sizeof *scale) : kInfinity;
  const auto stored = [=] {
    Store s = store(out, residual, activation);
    s.requantize = requantize;
    s.scale = scale;
    if (requantize) bound_integers(s);
    s.saturates = saturates(s, largest_scale);
    return s;
  };
  add_step(name, out, [=](const Task& t) { call->kernel(call->packed.conv, stored(), operand(in), t); });
  steps_.back().conv = call;
  steps_.back().conv_input = in;
  steps_.back().conv_store = stored;
}

void Program::chain(int count, size_t window_bytes) {
  const auto first = steps_.end() - count;
  std::vector<std::shared_ptr<const ConvCall>> calls;
  std::vector<std::function<Store()>> stored;
  std::vector<size_t> elements;
  for (auto step = first; step != steps_.end(); ++step) {
    calls.push_back(step->conv);
    stored.push_back(step->conv_store);
    elements.push_back(element_bytes(tensors_[step->output].operand));
  }
  const int in = first->conv_input, out = steps_.back().output;
  const std::string name = steps_.back().name;
  const auto links = std::make_shared<const Chain>(calls, elements, window_bytes);
  scratch_per_thread_ = std::max(scratch_per_thread_, links->scratch_bytes());
  steps_.erase(first, steps_.end());
  add_step(name, out, [=](const Task& t) {
    std::vector<Store> stores;
    for (const auto& store : stored) stores.push_back(store());
    links->run(operand(in), stores, t);
  });
}

void Program::add_sum(const std::string& name, int a, int b, int out, Activation activation) {
  add_step(name, out, [=](const Task& t) {
    const Range r = share(tensors_[out].elements() * t.images, t);
    kernels_.add(operand(a), operand(b), store(out, -1, activation), r.first, r.last);
  });
}

void Program::add_mul(const std::string& name, int a, int b, int out, bool gates) {
  add_step(name, out, [=](const Task& t) {
    const Tensor& to = tensors_[out];
    const size_t pixels = static_cast<size_t>(to.h) * to.w;
    const Range r = share(pixels * t.images, t);
    kernels_.mul(operand(a), operand(b), store(out, -1, kUnbounded), r.first, r.last, to.c, gates ? pixels : 0);
  });
}

void Program::add_prelu(const std::string& name, int in, int out, const float* slope) {
  const size_t c = tensors_[in].c;
  const std::vector<float> slopes(slope, slope + c);
  weight_bytes_ += c * sizeof(float);
  add_step(name, out, [=](const Task& t) {
    const Range r = share(static_cast<size_t>(tensors_[in].h) * tensors_[in].w * t.images, t);
    kernels_.prelu(operand(in), store(out, -1, kUnbounded), slopes.data(), r.first, r.last, c);
  });
}

void Program::add_channel_affine(const std::string& name, int in, int out, const float* weight, const float* bias) {
  const size_t c = tensors_[in].c;
  const std::vector<float> weights(weight, weight + c), biases(bias, bias + c);
  weight_bytes_ += 2 * c * sizeof(float);
  add_step(name, out, [=](const Task& t) {
    const Range r = share(static_cast<size_t>(tensors_[in].h) * tensors_[in].w * t.images, t);
    kernels_.channel_affine(operand(in), store(out, -1, kUnbounded), weights.data(), biases.data(), r.first, r.last, c);
  });
}

void Program::add_layer_norm(const std::string& name, int in, int out, const float* weight, const float* bias,
                             float epsilon) {
  const int32_t c = tensors_[in].c;
  const std::vector<float> weights(weight, weight + c), biases(bias, bias + c);
  weight_bytes_ += 2 * c * sizeof(float);
  add_step(name, out, [=](const Task& t) {
    const Range r = share(static_cast<size_t>(tensors_[in].h) * tensors_[in].w * t.images, t);
    const NormArgs args{c, epsilon, weights.data(), biases.data()};
    kernels_.layer_norm(args, operand(in), store(out, -1, kUnbounded), r.first, r.last);
  });
}

void Program::add_group_norm(const std::string& name, int in, int out, const float* weight, const float* bias,
                             int groups, float epsilon) {
  const int32_t c = tensors_[in].c, pixels = tensors_[in].h * tensors_[in].w;
  const int32_t blocks = (pixels + kMomentPixels - 1) / kMomentPixels;
  const std::vector<float> weights(weight, weight + c), biases(bias, bias + c);
  weight_bytes_ += sizeof(float) * 2 * c;
  scratch_per_thread_ = std::max(scratch_per_thread_, round_up(sizeof(float) * 3 * c + kSlack, kLine));
  shared_bytes_ = std::max(shared_bytes_, sizeof(float) * 3 * c * blocks * batch_);
  add_step(name, out, [=](const Task& t) {
    const GroupNormArgs args{c, groups, pixels, blocks, epsilon, weights.data(), biases.data(),
                             reinterpret_cast<float*>(shared_.data())};
    const Range parts = share(static_cast<size_t>(blocks) * t.images, t);
    kernels_.moments(args, operand(in), parts.first, parts.last);
    threads_.barrier();
    const Range r = share(static_cast<size_t>(pixels) * t.images, t);
    kernels_.group_norm(args, operand(in), store(out, -1, kUnbounded), r.first, r.last, t.scratch);
  });
}

void Program::add_attention(const std::string& name, int q, int k, int v, int out, int heads, float scale) {
  const Tensor &query = tensors_[q], &value = tensors_[v];
  const AttentionArgs args{query.h * query.w, heads, query.c / heads, value.c / heads, scale};
  const auto panels = [&](size_t n) { return round_up(n, 2 * kernels_.lanes); };
  const size_t columns = panels(args.tokens), depth = panels(args.depth), width = panels(args.width);
  const size_t floats = columns * args.depth + width * args.tokens + kQueries * (depth + columns + width);
  scratch_per_thread_ = std::max(scratch_per_thread_, round_up(floats * sizeof(float) + kSlack, kLine));
  add_step(name, out, [=](const Task& t) {
    kernels_.attention(args, operand(q), operand(k), operand(v), store(out, -1, kUnbounded), t);
  });
}

void Program::add_tokens(const std::string& name, int in, int out, const float* constants) {
  const Tensor& tokens = tensors_[out];
  std::vector<float> copied(constants, constants + tokens.elements());
  weight_bytes_ += copied.size() * sizeof(float);
  add_step(name, out, [=, copied = std::move(copied)](const Task& t) {
    const size_t size = tensors_[out].elements(), rest = tensors_[in].elements();
    Operand fixed{const_cast<float*>(copied.data()), 1.0f, 1.0f, 0, 0, false};
    for (int n = t.thread; n < t.images; n += t.threads) {
      Store s = store(out, -1, kUnbounded);
      s.out = advanced(s.out, n * size);
      kernels_.convert(fixed, s, 1, size - rest, 0);
      s.out = advanced(s.out, size - rest);
      kernels_.add(advanced(operand(in), n * rest), advanced(fixed, size - rest), s, 0, rest);
    }
  });
}

void Program::add_convert(const std::string& name, int in, int out, Activation activation) {
  add_step(name, out, [=](const Task& t) {
    const Range r = share(tensors_[out].elements() * t.images, t);
    Store s = store(out, -1, activation);
    s.out = advanced(s.out, r.first);
    kernels_.convert(advanced(operand(in), r.first), s, 1, r.last - r.first, 0);
  });
}

void Program::add_concat(const std::string& name, const std::vector<int>& in, int out) {
  add_step(name, out, [=](const Task& t) {
    const Tensor& to = tensors_[out];
    const Range r = share(static_cast<size_t>(to.h) * to.w * t.images, t);
    size_t first = 0;
    for (const int i : in) {
      const size_t width = tensors_[i].c;
      Store s = store(out, -1, kUnbounded);
      s.out = advanced(s.out, r.first * to.c + first);
      kernels_.convert(advanced(operand(i), r.first * width), s, r.last - r.first, width, to.c);
      first += width;
    }
  });
}

void Program::add_max_pool(const std::string& name, int in, int out, const PoolArgs& args) {
  add_step(name, out, [=](const Task& t) {
    const Range r = share(static_cast<size_t>(args.oh) * args.ow * t.images, t);
    kernels_.max_pool(args, operand(in), operand(out), r.first, r.last);
  });
}

void Program::add_avg_pool(const std::string& name, int in, int out, const PoolArgs& args) {
  add_step(name, out, [=](const Task& t) {
    const Range r = share(static_cast<size_t>(args.oh) * args.ow * t.images, t);
    kernels_.avg_pool(args, operand(in), store(out, -1, kUnbounded), r.first, r.last);
  });
}

// (H, W, C) to (C, H, W), image by image.
template <class T>
static void transpose(const T* from, T* to, size_t pixels, size_t channels, Range images) {
  for (size_t n = images.first; n < images.last; ++n) {
    const size_t base = n * pixels * channels;
    for (size_t c = 0; c < channels; ++c) {
      for (size_t p = 0; p < pixels; ++p) to[base + c * pixels + p] = from[base + p * channels + c];
    }
  }
}

void Program::add_flatten(const std::string& name, int in, int out) {
  add_step(name, out, [=](const Task& t) {
    const Tensor& shape = tensors_[in];
    const size_t pixels = static_cast<size_t>(shape.h) * shape.w;
    const Operand from = operand(in), to = operand(out);
    const Range r = share(t.images, t);
    if (to.is_u8)
      transpose(static_cast<const uint8_t*>(from.data), static_cast<uint8_t*>(to.data), pixels, shape.c, r);
    else
      transpose(static_cast<const float*>(from.data), static_cast<float*>(to.data), pixels, shape.c, r);
  });
}

// For output channels of `bytes` bytes each, of which c is the input's index[c], or none of them where that is negative.
static std::vector<Pick> picks_of(const std::vector<int32_t>& index, int bytes) {
  std::vector<Pick> picks;
  const int32_t out_bytes = static_cast<int32_t>(index.size()) * bytes;
  for (int32_t target = 0; target < out_bytes; target += kPicked) {
    const size_t first = picks.size();
    for (int32_t i = target; i < std::min(target + kPicked, out_bytes); ++i) {
      if (index[i / bytes] < 0) continue;
      const int32_t from = index[i / bytes] * bytes + i % bytes, source = from / kPicked * kPicked;
      size_t at = first;
      while (at < picks.size() && picks[at].source != source) ++at;
      if (at == picks.size()) {
        picks.push_back({target, source, {}});
        std::fill_n(picks[at].place, kPicked, kNowhere);
      }
      picks[at].place[i - target] = static_cast<uint8_t>(from - source);
    }
  }
  picks.push_back({out_bytes + kPicked, 0, {}});
  return picks;
}

void Program::add_channel_map(const std::string& name, int in, int out, const std::vector<int32_t>& index) {
  const int bytes = static_cast<int>(element_bytes(tensors_[out].operand));
  const std::vector<Pick> picks = picks_of(index, bytes);
  std::vector<uint8_t> start(round_up(index.size() * bytes, kPicked));
  if (bytes == 1) {
    for (size_t c = 0; c < index.size(); ++c) start[c] = static_cast<uint8_t>(index[c] < 0 ? tensors_[out].operand.zero : 0);
  }
  add_step(name, out, [=](const Task& t) {
    const PickArgs args{tensors_[in].c * bytes, tensors_[out].c * bytes, start.data(), picks.data()};
    const Range r = share(static_cast<size_t>(tensors_[out].h) * tensors_[out].w * t.images, t);
    kernels_.pick_channels(args, static_cast<const uint8_t*>(operand(in).data), static_cast<uint8_t*>(operand(out).data),
                           r.first, r.last);
  });
}

void Program::add_subsample(const std::string& name, int in, int out, int stride_h, int stride_w) {
  add_step(name, out, [=](const Task& t) {
    const Tensor &from = tensors_[in], &to = tensors_[out];
    const size_t bytes = element_bytes(from.operand) * from.c;
    const Range r = share(static_cast<size_t>(to.h) * t.images, t);
    const char* source = static_cast<const char*>(operand(in).data);
    char* target = static_cast<char*>(operand(out).data) + r.first * to.w * bytes;
    for (size_t row = r.first; row < r.last; ++row) {
      const size_t y = row / to.h * from.h + row % to.h * stride_h;
      for (int x = 0; x < to.w; ++x, target += bytes)
        std::memcpy(target, source + (y * from.w + static_cast<size_t>(x) * stride_w) * bytes, bytes);
    }
  });
}

void Program::add_nearest(const std::string& name, int in, int out) {
  const size_t from_w = tensors_[in].w, to_w = tensors_[out].w;
  std::vector<size_t> columns;
  for (size_t x = 0; x < to_w; ++x) columns.push_back(x * from_w / to_w);
  add_step(name, out, [=, columns = std::move(columns)](const Task& t) {
    const Tensor &from = tensors_[in], &to = tensors_[out];
    const size_t bytes = element_bytes(from.operand) * from.c, line = bytes * columns.size();
    const Range r = share(static_cast<size_t>(to.h) * t.images, t);
    const char* source = static_cast<const char*>(operand(in).data);
    char* target = static_cast<char*>(operand(out).data) + r.first * line;
    const auto source_row = [&](size_t row) { return row / to.h * from.h + row % to.h * from.h / to.h; };
    for (size_t row = r.first; row < r.last; ++row, target += line) {
      const size_t y = source_row(row);
      if (row > r.first && y == source_row(row - 1)) {
        std::memcpy(target, target - line, line);
        continue;
      }
      for (size_t x = 0; x < columns.size(); ++x)
        std::memcpy(target + x * bytes, source + (y * from.w + columns[x]) * bytes, bytes);
    }
  });
}

// Positions are exact fractions, so that they are the same everywhere.
static std::vector<Tap> taps_of(int64_t from, int64_t to, bool align_corners) {
  std::vector<Tap> taps;
  for (int64_t i = 0; i < to; ++i) {
    const int64_t below = align_corners ? std::max<int64_t>(to - 1, 1) : 2 * to;
    const int64_t above = align_corners ? i * (from - 1) : std::max<int64_t>((2 * i + 1) * from - to, 0);
    const int64_t first = above / below;
    taps.push_back({static_cast<int32_t>(first), static_cast<int32_t>(std::min(first + 1, from - 1)),
                    static_cast<float>(static_cast<double>(above % below) / static_cast<double>(below))});
  }
  return taps;
}

void Program::add_bilinear(const std::string& name, int in, int out, bool align_corners) {
  const Tensor &from = tensors_[in], &to = tensors_[out];
  const std::vector<Tap> rows = taps_of(from.h, to.h, align_corners), columns = taps_of(from.w, to.w, align_corners);
  const int32_t ih = from.h, iw = from.w, c = from.c, oh = to.h, ow = to.w;
  scratch_per_thread_ = std::max(scratch_per_thread_, round_up(sizeof(float) * iw * c + kSlack, kLine));
  add_step(name, out, [=](const Task& t) {
    const Range r = share(static_cast<size_t>(oh) * t.images, t);
    const BilinearArgs args{ih, iw, c, oh, ow, rows.data(), columns.data()};
    kernels_.bilinear(args, operand(in), store(out, -1, kUnbounded), r.first, r.last, t.scratch);
  });
}

void Program::add_depth_to_space(const std::string& name, int in, int out, int block_h, int block_w, int top,
                                 int left) {
  const Tensor &from = tensors_[in], &to = tensors_[out];
  const DepthToSpaceArgs args{from.h, from.w, to.c, to.h, to.w, block_h, block_w, top, left};
  add_step(name, out, [=](const Task& t) {
    const Range r = share(static_cast<size_t>(args.ih) * t.images, t);
    kernels_.depth_to_space(args, operand(in), operand(out), r.first, r.last);
  });
}

void Program::finish(int input, int output, size_t arena_bytes) {
  input_ = input;
  output_ = output;
  arena_ = Memory(arena_bytes + kSlack);
  fill_with_junk(arena_);
  shared_ = Memory(shared_bytes_);
  fill_with_junk(shared_);
  for (int i = 0; i < threads_.size(); ++i) {
    scratch_.emplace_back(scratch_per_thread_);
    fill_with_junk(scratch_.back());
  }
}

}  // namespace trimtab
