// Compares every operator, on random small programs at every level of this machine, with the formulas of
// docs/arithmetic.md in plain loops: for machines without the Python side, and for sanitizers.
// usage: selftest [CASES PER OPERATOR AND LEVEL [SEED]]
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu.h"
#include "program.h"

namespace trimtab {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Activation kActivations[] = {{-kInfinity, kInfinity}, {0.0f, kInfinity}, {0.0f, 6.0f}};

struct Random {
  std::mt19937 engine;
  int integer(int least, int most) { return std::uniform_int_distribution<int>(least, most)(engine); }
  float real(float least, float most) { return std::uniform_real_distribution<float>(least, most)(engine); }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine); }
};

struct Shape {
  int c, h, w;
  size_t elements() const { return static_cast<size_t>(c) * h * w; }
};

// How a tensor is stored: float32, or 1 to 8 bits with a scale and a zero point.
struct Format {
  bool is_u8 = false;
  float scale = 1;
  int zero = 0, bits = 8;
  int top() const { return (1 << bits) - 1; }
  bool operator==(const Format& o) const {
    return is_u8 == o.is_u8 && scale == o.scale && zero == o.zero && bits == o.bits;
  }
};

// The stored values of a tensor, (N, C, H, W): integers (as float, exactly) or float32.
struct Values {
  int images;
  Shape shape;
  Format format;
  std::vector<float> stored;

  Values(int n, Shape s, Format f) : images(n), shape(s), format(f), stored(n * s.elements()) {}
  float& at(int n, int c, int y, int x) {
    return stored[((static_cast<size_t>(n) * shape.c + c) * shape.h + y) * shape.w + x];
  }
  float at(int n, int c, int y, int x) const { return const_cast<Values*>(this)->at(n, c, y, x); }
  float real_of(float q) const { return format.is_u8 ? (q - static_cast<float>(format.zero)) * format.scale : q; }
  float real(int n, int c, int y, int x) const { return real_of(at(n, c, y, x)); }
  bool inside(int y, int x) const { return y >= 0 && y < shape.h && x >= 0 && x < shape.w; }
};

float to_stored(float x, const Format& f) {
  if (!f.is_u8) return x;
  const float inverse = static_cast<float>(1.0 / static_cast<double>(f.scale));
  const float low = static_cast<float>(-f.zero), high = static_cast<float>(f.top() - f.zero);
  const float scaled = x * inverse;
  return std::nearbyint(std::min(std::max(scaled, low), high)) + static_cast<float>(f.zero);
}

float activate(float x, const Activation& a) { return std::min(std::max(x, a.floor), a.ceil); }

// Fills `to` with of(n, c, y, x).
template <class Of>
void fill(Values& to, const Of& of) {
  for (int n = 0; n < to.images; ++n)
    for (int c = 0; c < to.shape.c; ++c)
      for (int y = 0; y < to.shape.h; ++y)
        for (int x = 0; x < to.shape.w; ++x) to.at(n, c, y, x) = of(n, c, y, x);
}

// A program in the making, and what every tensor of it should hold.
class Case {
 public:
  Case(Random& random, const Kernels& kernels)
      : random(random), batch(random.integer(1, 3)), program(kernels, random.integer(1, 3), batch) {}

  Format random_format() {
    if (random.chance(0.4)) return {};
    const int bits = random.chance(0.7) ? 8 : random.integer(1, 7);
    const int zero = random.chance(0.3) ? 0 : random.integer(0, (1 << bits) - 1);
    return {true, random.real(0.005f, 0.1f), zero, bits};
  }

  int add(Values values) {
    const Format& f = values.format;
    const Shape& s = values.shape;
    const int id = program.add_tensor(s.c, s.h, s.w, arena_, f.is_u8, f.scale, f.zero, f.bits);
    arena_ += round_up(s.elements() * batch * (f.is_u8 ? 1 : 4) + kSlack, kLine);
    wanted.push_back(std::move(values));
    return id;
  }

  int add_input(Shape shape, Format format) {
    const int images = random.integer(1, batch);
    Values in(images, shape, format);
    for (float& v : in.stored) {
      input_.push_back(random.real(-4, 4));
      v = to_stored(input_.back(), format);
    }
    return add(in);
  }

  // The number of values that differ by more than the tolerance that goes with the tensor `loose`.
  int failures(int output, int loose) {
    program.finish(0, output, arena_);
    int wrong = 0;
    program.trace(input_.data(), wanted[0].images, [&](int id, const float* got) {
      const Values& want = wanted[id];
      for (size_t i = 0; i < want.stored.size(); ++i) {
        const float real = want.real_of(want.stored[i]);
        const float step = want.format.is_u8 ? want.format.scale * 1.01f : 1e-4f * (1 + std::abs(real));
        const bool equal = id == loose ? std::abs(got[i] - real) <= step : got[i] == real;
        wrong += !equal;
      }
    });
    return wrong;
  }

  // The same for integers, where several threads run the program at the same time.
  int concurrent_failures(int output) {
    program.finish(0, output, arena_);
    const Values& want = wanted[output];
    std::atomic<int> wrong{0};
    const auto runs = [&] {
      std::vector<float> y(want.stored.size());
      for (int i = 0; i < 5; ++i) {
        std::fill(y.begin(), y.end(), -1.0f);
        program.run(input_.data(), wanted[0].images, y.data());
        for (size_t j = 0; j < y.size(); ++j) wrong += y[j] != want.real_of(want.stored[j]);
      }
    };
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; ++i) callers.emplace_back(runs);
    for (std::thread& caller : callers) caller.join();
    return wrong;
  }

  Random& random;
  const int batch;
  Program program;
  std::vector<Values> wanted;

 private:
  size_t arena_ = 0;
  std::vector<float> input_;
};

struct Convolution {
  ConvSpec spec;
  int pad_bottom, pad_right;
  std::vector<float> float_weights, weight_scale, bias;
  std::vector<int8_t> int_weights;
  Activation activation;

  float weight(size_t i) const {
    return int_weights.empty() ? float_weights[i] : static_cast<float>(int_weights[i]);
  }
};

Convolution random_convolution(Random& r) {
  Convolution k{};
  ConvSpec& s = k.spec;
  const bool large = r.chance(0.05), winograd = r.chance(0.2), depthwise = !winograd && r.chance(0.2);
  s.groups = large || winograd ? 1 : depthwise ? r.integer(2, 40) : r.chance(0.2) ? r.integer(2, 4) : 1;
  s.ic = depthwise ? s.groups : s.groups * r.integer(1, r.chance(0.3) ? 70 : 16);
  s.oc = depthwise ? s.groups : s.groups * r.integer(1, r.chance(0.3) ? 70 : 20);
  s.ih = r.integer(3, 9), s.iw = r.integer(3, 9);
  const bool plain = winograd || r.chance(0.3);
  s.kh = winograd ? 3 : r.integer(1, 3), s.kw = winograd ? 3 : r.integer(1, 3);
  if (large) s.ic = 123, s.oc = 131, s.ih = s.iw = s.kh = s.kw = 3;
  s.stride_h = plain ? 1 : r.integer(1, 2), s.stride_w = plain ? 1 : r.integer(1, 2);
  s.dilation_h = plain ? 1 : r.integer(1, 2), s.dilation_w = plain ? 1 : r.integer(1, 2);
  s.pad_top = r.integer(0, 2), s.pad_left = r.integer(0, 2);
  k.pad_bottom = r.integer(0, 2), k.pad_right = r.integer(0, 2);
  if (r.chance(0.3)) s.pad_top = s.pad_left = k.pad_bottom = k.pad_right = 0;
  const int reach_h = (s.kh - 1) * s.dilation_h + 1, reach_w = (s.kw - 1) * s.dilation_w + 1;
  k.pad_bottom = std::max(k.pad_bottom, reach_h - s.ih - s.pad_top);
  k.pad_right = std::max(k.pad_right, reach_w - s.iw - s.pad_left);
  s.pads = s.pad_top + s.pad_left + k.pad_bottom + k.pad_right > 0;
  s.oh = (s.ih + s.pad_top + k.pad_bottom - reach_h) / s.stride_h + 1;
  s.ow = (s.iw + s.pad_left + k.pad_right - reach_w) / s.stride_w + 1;
  k.activation = kActivations[r.integer(0, 2)];
  return k;
}

// Eight significant bits.
float to_bf16(float x) {
  const float step = std::ldexp(1.0f, std::ilogb(x) - 7);
  return x == 0 ? x : std::nearbyint(x / step) * step;
}

void random_weights(Random& r, Convolution& k, bool integer) {
  ConvSpec& s = k.spec;
  const int fan_in = s.ic / s.groups * s.kh * s.kw;
  const int largest = r.chance(0.5) ? 128 : r.chance(0.5) ? 7 : 1;
  for (int i = 0; i < s.oc * fan_in; ++i) {
    if (integer)
      k.int_weights.push_back(static_cast<int8_t>(r.integer(-largest, std::min(largest, 127))));
    else
      k.float_weights.push_back(r.real(-1, 1) / std::sqrt(static_cast<float>(fan_in)));
  }
  for (int o = 0; o < s.oc; ++o) {
    k.bias.push_back(r.real(-1, 1));
    k.weight_scale.push_back(r.real(0.5f, 1.5f) / (std::sqrt(static_cast<float>(fan_in)) * static_cast<float>(largest)));
  }
  s.float_weights = integer ? nullptr : k.float_weights.data();
  s.int_weights = integer ? k.int_weights.data() : nullptr;
  s.weight_scale = k.weight_scale.data();
  s.bias = k.bias.data();
}

// The sum of products of one output, exact where both are integers.
double product(const Convolution& k, const Values& in, int n, int o, int y, int x) {
  const ConvSpec& s = k.spec;
  const int inputs = s.ic / s.groups, first = o / (s.oc / s.groups) * inputs;
  double sum = 0;
  for (int i = 0; i < inputs; ++i)
    for (int dy = 0; dy < s.kh; ++dy)
      for (int dx = 0; dx < s.kw; ++dx) {
        const int at_y = y * s.stride_h + dy * s.dilation_h - s.pad_top;
        const int at_x = x * s.stride_w + dx * s.dilation_w - s.pad_left;
        if (!in.inside(at_y, at_x)) continue;
        const double w = k.weight(((static_cast<size_t>(o) * inputs + i) * s.kh + dy) * s.kw + dx);
        const float value = in.at(n, first + i, at_y, at_x) - static_cast<float>(in.format.zero);
        sum += w * (s.bf16 ? to_bf16(value) : value);
      }
  return sum;
}

float requantized(const Convolution& k, float acc, int o, const Format& in, const Format& out) {
  const double zero = out.zero;
  const double low = k.activation.floor == 0 ? 0 : -zero;
  double high = out.top() - zero;
  if (std::isfinite(k.activation.ceil)) high = std::min(high, std::nearbyint(6.0 / static_cast<double>(out.scale)));
  const float m = static_cast<float>(static_cast<double>(in.scale) * k.weight_scale[o] / out.scale);
  return std::nearbyint(std::min(std::max(acc * m, static_cast<float>(low)), static_cast<float>(high))) +
         static_cast<float>(out.zero);
}

Values convolved(const Convolution& k, const Values& in, const Values* residual, const Format& to) {
  const bool integer = k.spec.int_weights != nullptr;
  Values out(in.images, {k.spec.oc, k.spec.oh, k.spec.ow}, to);
  fill(out, [&](int n, int o, int y, int x) {
    const double sum = product(k, in, n, o, y, x);
    const double scale = static_cast<double>(in.format.scale) * k.weight_scale[o];
    float real;
    if (integer) {
      const auto acc = static_cast<float>(sum + std::nearbyint(k.bias[o] / scale));
      if (residual == nullptr && to.is_u8) return requantized(k, acc, o, in.format, to);
      real = acc * static_cast<float>(scale);
    } else {
      real = static_cast<float>(sum + k.bias[o]);
    }
    if (residual != nullptr) real += residual->real(n, o, y, x);
    return to_stored(activate(real, k.activation), to);
  });
  return out;
}

int test_bf16(Case& c) {
  Convolution k = random_convolution(c.random);
  random_weights(c.random, k, false);
  ConvSpec& s = k.spec;
  const bool depthwise = s.groups > 1 && s.ic == s.groups && s.oc == s.groups;
  s.bf16 = !depthwise;
  for (float& w : k.float_weights) w = to_bf16(w);
  const int in = c.add_input({s.ic, s.ih, s.iw}, {});
  const int out = c.add(convolved(k, c.wanted[in], nullptr, c.random_format()));
  c.program.add_conv("conv", in, out, -1, s, k.activation);
  return c.failures(out, out);
}

// Convolutions and linear layers: returns the number of wrong values. The first layer's output is the residual of the
// second, which has the same geometry and weights of its own.
int test_conv(Case& c, bool integer) {
  Random& r = c.random;
  Convolution k = random_convolution(r);
  random_weights(r, k, integer);
  const ConvSpec& s = k.spec;
  Format from = c.random_format();
  while (from.is_u8 != integer) from = c.random_format();
  const Format to = c.random_format();
  const int in = c.add_input({s.ic, s.ih, s.iw}, from);
  const int out = c.add(convolved(k, c.wanted[in], nullptr, to));
  c.program.add_conv("conv", in, out, -1, s, k.activation);
  if (!integer) return c.failures(out, out);
  if (r.chance(0.3)) return c.concurrent_failures(out);
  Convolution second = k;
  random_weights(r, second, integer);
  second.activation = kActivations[r.integer(0, 2)];
  const int sum = c.add(convolved(second, c.wanted[in], &c.wanted[out], c.random_format()));
  c.program.add_conv("residual", in, sum, out, second.spec, second.activation);
  return c.failures(sum, -1);
}

Shape random_shape(Random& r) { return {r.integer(1, 37), r.integer(1, 9), r.integer(1, 9)}; }

int test_add(Case& c) {
  const Activation a = kActivations[c.random.integer(0, 2)];
  const int in = c.add_input(random_shape(c.random), c.random_format());
  Values other(c.wanted[in].images, c.wanted[in].shape, c.random_format());
  fill(other, [&](int n, int ch, int y, int x) {
    return to_stored(activate(c.wanted[in].real(n, ch, y, x), a), other.format);
  });
  const int second = c.add(other);
  c.program.add_convert("convert", in, second, a);
  Values sum(other.images, other.shape, c.random_format());
  fill(sum, [&](int n, int ch, int y, int x) {
    return to_stored(activate(c.wanted[in].real(n, ch, y, x) + other.real(n, ch, y, x), a), sum.format);
  });
  const int out = c.add(sum);
  c.program.add_sum("add", in, second, out, a);
  return c.failures(out, -1);
}

int test_concat(Case& c) {
  const int in = c.add_input(random_shape(c.random), c.random_format());
  const Shape s = c.wanted[in].shape;
  const int copies = c.random.integer(1, 3);
  Values joined(c.wanted[in].images, {s.c * copies, s.h, s.w}, c.random_format());
  fill(joined, [&](int n, int ch, int y, int x) {
    const Values& from = c.wanted[in];
    return from.format == joined.format ? from.at(n, ch % s.c, y, x)
                                        : to_stored(from.real(n, ch % s.c, y, x), joined.format);
  });
  const int out = c.add(joined);
  c.program.add_concat("concat", std::vector<int>(copies, in), out);
  return c.failures(out, -1);
}

PoolArgs random_pool(Random& r, const Shape& s) {
  PoolArgs g{};
  g.ih = s.h, g.iw = s.w, g.c = s.c;
  g.kh = r.integer(1, s.h), g.kw = r.integer(1, s.w);
  g.stride_h = r.integer(1, 3), g.stride_w = r.integer(1, 3);
  g.pad_top = r.integer(0, g.kh - 1), g.pad_left = r.integer(0, g.kw - 1);
  g.oh = (s.h + g.pad_top + r.integer(0, g.kh - 1) - g.kh) / g.stride_h + 1;
  g.ow = (s.w + g.pad_left + r.integer(0, g.kw - 1) - g.kw) / g.stride_w + 1;
  g.include_pad = r.chance(0.5);
  return g;
}

// Calls visit(y, x) for the pixels of a window that lie inside the image.
template <class Visit>
void for_window(const PoolArgs& g, const Values& in, int y, int x, const Visit& visit) {
  for (int dy = 0; dy < g.kh; ++dy)
    for (int dx = 0; dx < g.kw; ++dx) {
      const int at_y = y * g.stride_h + dy - g.pad_top, at_x = x * g.stride_w + dx - g.pad_left;
      if (in.inside(at_y, at_x)) visit(at_y, at_x);
    }
}

int test_max_pool(Case& c) {
  const Format format = c.random_format();
  const int in = c.add_input(random_shape(c.random), format);
  const Values from = c.wanted[in];
  const PoolArgs g = random_pool(c.random, from.shape);
  Values pooled(from.images, {g.c, g.oh, g.ow}, format);
  fill(pooled, [&](int n, int ch, int y, int x) {
    float most = -kInfinity;
    for_window(g, from, y, x, [&](int at_y, int at_x) { most = std::max(most, from.at(n, ch, at_y, at_x)); });
    return most;
  });
  const int out = c.add(pooled);
  c.program.add_max_pool("max_pool", in, out, g);
  return c.failures(out, -1);
}

int test_avg_pool(Case& c) {
  const int in = c.add_input(random_shape(c.random), c.random_format());
  const Values from = c.wanted[in];
  const PoolArgs g = random_pool(c.random, from.shape);
  Values pooled(from.images, {g.c, g.oh, g.ow}, c.random_format());
  fill(pooled, [&](int n, int ch, int y, int x) {
    double sum = 0;
    int count = 0;
    for_window(g, from, y, x, [&](int at_y, int at_x) {
      sum += from.at(n, ch, at_y, at_x) - static_cast<float>(from.format.zero);
      ++count;
    });
    if (g.include_pad) count = g.kh * g.kw;
    const float mean = from.format.is_u8 ? static_cast<float>(sum) * static_cast<float>(from.format.scale / double(count))
                                         : static_cast<float>(sum / count);
    return to_stored(mean, pooled.format);
  });
  const int out = c.add(pooled);
  c.program.add_avg_pool("avg_pool", in, out, g);
  return c.failures(out, from.format.is_u8 ? -1 : out);
}

int test_channel_map(Case& c) {
  const Format format = c.random_format();
  const int in = c.add_input(random_shape(c.random), format);
  const Values from = c.wanted[in];
  std::vector<int32_t> index(c.random.integer(1, 40));
  for (int32_t& i : index) i = c.random.integer(-1, from.shape.c - 1);
  Values mapped(from.images, {static_cast<int>(index.size()), from.shape.h, from.shape.w}, format);
  fill(mapped, [&](int n, int ch, int y, int x) {
    return index[ch] < 0 ? static_cast<float>(format.zero) : from.at(n, index[ch], y, x);
  });
  const int out = c.add(mapped);
  c.program.add_channel_map("channel_map", in, out, index);
  return c.failures(out, -1);
}

int test_subsample(Case& c) {
  const Format format = c.random_format();
  const int in = c.add_input(random_shape(c.random), format);
  const Values from = c.wanted[in];
  const int sh = c.random.integer(1, 4), sw = c.random.integer(1, 4);
  Values kept(from.images, {from.shape.c, (from.shape.h + sh - 1) / sh, (from.shape.w + sw - 1) / sw}, format);
  fill(kept, [&](int n, int ch, int y, int x) { return from.at(n, ch, y * sh, x * sw); });
  const int out = c.add(kept);
  c.program.add_subsample("subsample", in, out, sh, sw);
  return c.failures(out, -1);
}

int test_per_channel(Case& c) {
  const int in = c.add_input(random_shape(c.random), c.random_format());
  const Values from = c.wanted[in];
  std::vector<float> slope, weight, bias;
  for (int i = 0; i < from.shape.c; ++i) {
    for (std::vector<float>* numbers : {&slope, &weight, &bias}) numbers->push_back(c.random.real(-2, 2));
  }
  Values bent(from.images, from.shape, c.random_format());
  fill(bent, [&](int n, int ch, int y, int x) {
    const float v = from.real(n, ch, y, x);
    return to_stored(v > 0 ? v : slope[ch] * v, bent.format);
  });
  const int middle = c.add(bent);
  c.program.add_prelu("prelu", in, middle, slope.data());
  Values scaled(from.images, from.shape, c.random_format());
  fill(scaled, [&](int n, int ch, int y, int x) {
    return to_stored(bent.real(n, ch, y, x) * weight[ch] + bias[ch], scaled.format);
  });
  const int out = c.add(scaled);
  c.program.add_channel_affine("channel_affine", middle, out, weight.data(), bias.data());
  return c.failures(out, -1);
}

int test_group_norm(Case& c) {
  const int groups = c.random.integer(1, 5);
  const Shape s{groups * c.random.integer(1, 9), c.random.integer(1, 20), c.random.integer(1, 20)};
  const int in = c.add_input(s, c.random_format());
  const Values from = c.wanted[in];
  std::vector<float> weight, bias;
  for (int i = 0; i < s.c; ++i) weight.push_back(c.random.real(-2, 2)), bias.push_back(c.random.real(-2, 2));
  Values normal(from.images, s, c.random_format());
  const int width = s.c / groups;
  const double count = static_cast<double>(width) * s.h * s.w;
  for (int n = 0; n < from.images; ++n)
    for (int group = 0; group < groups; ++group) {
      const auto each = [&](const auto& visit) {
        for (int ch = group * width; ch < (group + 1) * width; ++ch)
          for (int y = 0; y < s.h; ++y)
            for (int x = 0; x < s.w; ++x) visit(ch, y, x, static_cast<double>(from.real(n, ch, y, x)));
      };
      double sum = 0, squares = 0;
      each([&](int, int, int, double v) { sum += v; });
      each([&](int, int, int, double v) { squares += (v - sum / count) * (v - sum / count); });
      each([&](int ch, int y, int x, double v) {
        const double unit = (v - sum / count) / std::sqrt(squares / count + 1e-3);
        normal.at(n, ch, y, x) = to_stored(static_cast<float>(unit * weight[ch] + bias[ch]), normal.format);
      });
    }
  const int out = c.add(normal);
  c.program.add_group_norm("group_norm", in, out, weight.data(), bias.data(), groups, 1e-3f);
  return c.failures(out, out);
}

int test_nearest(Case& c) {
  const Format format = c.random_format();
  const int in = c.add_input(random_shape(c.random), format);
  const Values from = c.wanted[in];
  Values large(from.images, {from.shape.c, c.random.integer(1, 20), c.random.integer(1, 20)}, format);
  fill(large, [&](int n, int ch, int y, int x) {
    return from.at(n, ch, y * from.shape.h / large.shape.h, x * from.shape.w / large.shape.w);
  });
  const int out = c.add(large);
  c.program.add_nearest("nearest", in, out);
  return c.failures(out, -1);
}

int test_bilinear(Case& c) {
  const int in = c.add_input(random_shape(c.random), c.random_format());
  const bool corners = c.random.chance(0.5);
  const Values from = c.wanted[in];
  Values large(from.images, {from.shape.c, c.random.integer(1, 20), c.random.integer(1, 20)}, c.random_format());
  const auto place = [&](int i, int to, int of) {
    if (corners) return to == 1 ? 0.0 : i * (of - 1.0) / (to - 1.0);
    return std::max((i + 0.5) * of / to - 0.5, 0.0);
  };
  fill(large, [&](int n, int ch, int y, int x) {
    double sum = 0;
    for (int i = 0; i < from.shape.h; ++i)
      for (int j = 0; j < from.shape.w; ++j) {
        const double row = std::min(place(y, large.shape.h, from.shape.h), from.shape.h - 1.0) - i;
        const double column = std::min(place(x, large.shape.w, from.shape.w), from.shape.w - 1.0) - j;
        sum += std::max(1 - std::abs(row), 0.0) * std::max(1 - std::abs(column), 0.0) * from.real(n, ch, i, j);
      }
    return to_stored(static_cast<float>(sum), large.format);
  });
  const int out = c.add(large);
  c.program.add_bilinear("bilinear", in, out, corners);
  return c.failures(out, out);
}

int test_depth_to_space(Case& c) {
  const Format format = c.random_format();
  const int bh = c.random.integer(1, 3), bw = c.random.integer(1, 3), outputs = c.random.integer(1, 37);
  const Shape s{outputs * bh * bw, c.random.integer(1, 9), c.random.integer(1, 9)};
  const int in = c.add_input(s, format);
  const Values from = c.wanted[in];
  const int top = c.random.integer(0, s.h * bh - 1), left = c.random.integer(0, s.w * bw - 1);
  const Shape to{outputs, c.random.integer(1, s.h * bh - top), c.random.integer(1, s.w * bw - left)};
  Values spread(from.images, to, format);
  fill(spread, [&](int n, int ch, int y, int x) {
    y += top, x += left;
    return from.at(n, (ch * bh + y % bh) * bw + x % bw, y / bh, x / bw);
  });
  const int out = c.add(spread);
  c.program.add_depth_to_space("depth_to_space", in, out, bh, bw, top, left);
  return c.failures(out, -1);
}

int test_flatten(Case& c) {
  const Format format = c.random_format();
  const int in = c.add_input(random_shape(c.random), format);
  Values flat = c.wanted[in];  // (C, H, W) order is that of the values
  flat.shape = {static_cast<int>(flat.shape.elements()), 1, 1};
  const int out = c.add(flat);
  c.program.add_flatten("flatten", in, out);
  return c.failures(out, -1);
}

struct Test {
  const char* name;
  std::function<int(Case&)> run;
};

const Test kTests[] = {
    {"integer convolution", [](Case& c) { return test_conv(c, true); }},
    {"float convolution", [](Case& c) { return test_conv(c, false); }},
    {"bf16 convolution", test_bf16},
    {"add", test_add},
    {"concat", test_concat},
    {"max pool", test_max_pool},
    {"average pool", test_avg_pool},
    {"channel map", test_channel_map},
    {"subsample", test_subsample},
    {"flatten", test_flatten},
    {"prelu and channel affine", test_per_channel},
    {"group norm", test_group_norm},
    {"nearest upsampling", test_nearest},
    {"bilinear upsampling", test_bilinear},
    {"depth to space", test_depth_to_space},
};

// Returns how many cases of a test went wrong at a level.
int run_cases(const Test& test, const std::string& level, int cases, unsigned seed) {
  int failed = 0;
  for (int i = 0; i < cases; ++i) {
    Random random{std::mt19937(seed + i)};
    Case c(random, *find_kernels(level));
    const int wrong = test.run(c);
    if (wrong == 0) continue;
    std::printf("%s, %s, seed %u: %d values are wrong\n", level.c_str(), test.name, seed + i, wrong);
    ++failed;
  }
  return failed;
}

}  // namespace
}  // namespace trimtab

int main(int argc, char** argv) {
  using namespace trimtab;
  const int cases = argc > 1 ? std::atoi(argv[1]) : 60;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  std::vector<std::string> levels = available_levels();
  for (const std::string& level : emulated_levels()) levels.push_back(level);
  int failed = 0;
  for (const std::string& level : levels) {
    for (const Test& test : kTests) failed += run_cases(test, level, cases, seed);
    std::printf("%s: %zu operators, %d cases of each\n", level.c_str(), std::size(kTests), cases);
  }
  return failed == 0 ? 0 : 1;
}
