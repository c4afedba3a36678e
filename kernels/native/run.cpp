// Running, timing and inspecting a program.
#include <sys/resource.h>
#include <time.h>

#include <algorithm>

#include "program.h"

namespace trimtab {
namespace {

double seconds_now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

long involuntary_switches() {
  rusage usage;
#if defined(RUSAGE_THREAD)
  getrusage(RUSAGE_THREAD, &usage);
#else
  getrusage(RUSAGE_SELF, &usage);
#endif
  return usage.ru_nivcsw;
}

}  // namespace

Task Program::task(int images, int thread) const {
  return {images, thread, threads_.size(), scratch_[thread].data()};
}

// This thread's share of a step; returns when all threads have done theirs.
void Program::run_step(const Step& step, const Task& t) {
  if (kChecked) {
    if (t.thread == 0) check_.before(arena_);
    threads_.barrier();
  }
  step.run(t);
  threads_.barrier();
  if (kChecked) {
    const Tensor& out = tensors_[step.output];
    const size_t bytes = out.elements() * t.images * (out.operand.is_u8 ? 1 : sizeof(float));
    if (t.thread == 0) check_.after(arena_, step.name, out.offset, bytes);
    threads_.barrier();
  }
}

void Program::load_input(const float* x, const Task& t) const {
  const Tensor& in = tensors_[input_];
  const int pixels = in.h * in.w;
  const auto part = [&](int thread) { return static_cast<int>(int64_t{pixels} * thread / t.threads); };
  for (int n = 0; n < t.images; ++n) {
    Store s = store(input_, -1, {});
    const size_t skip = n * in.elements() * (s.out.is_u8 ? 1 : sizeof(float));
    s.out.data = static_cast<char*>(s.out.data) + skip;
    kernels_.input(x + n * in.elements(), s, in.c, pixels, part(t.thread), part(t.thread + 1));
  }
}

// Pixels in short strips, so that a strip of all channels stays in the first-level cache.
template <class Real>
static void planes_of(float* y, size_t pixels, size_t channels, const Real& real) {
  constexpr size_t kStrip = 16;
  for (size_t first = 0; first < pixels; first += kStrip) {
    const size_t last = std::min(first + kStrip, pixels);
    for (size_t c = 0; c < channels; ++c) {
      for (size_t p = first; p < last; ++p) y[c * pixels + p] = real(p * channels + c);
    }
  }
}

void Program::save_output(int tensor, float* y, const Task& t) const {
  const Tensor& out = tensors_[tensor];
  const Operand o = operand(tensor);
  const size_t pixels = static_cast<size_t>(out.h) * out.w, channels = out.c;
  for (int n = t.thread; n < t.images; n += t.threads) {
    const size_t base = n * out.elements();
    if (o.is_u8) {
      const auto* q = static_cast<const uint8_t*>(o.data) + base;
      planes_of(y + base, pixels, channels, [=](size_t i) { return static_cast<float>(q[i] - o.zero) * o.scale; });
    } else {
      const auto* values = static_cast<const float*>(o.data) + base;
      planes_of(y + base, pixels, channels, [=](size_t i) { return values[i]; });
    }
  }
}

void Program::run_chunk(const float* x, int images, float* y) {
  threads_.run([&](int thread) {
    const Task t = task(images, thread);
    load_input(x, t);
    threads_.barrier();
    for (const Step& step : steps_) run_step(step, t);
    save_output(output_, y, t);
  });
}

void Program::run(const float* x, size_t images, float* y) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t n = 0; n < images; n += batch_) {
    const int chunk = static_cast<int>(std::min<size_t>(batch_, images - n));
    run_chunk(x + n * input().elements(), chunk, y + n * output().elements());
  }
}

Slice Program::time(const float* inputs, size_t count, double seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t step = input().elements() * batch_;
  std::vector<float> y(output().elements() * batch_);
  const long before = involuntary_switches();
  const double start = seconds_now();
  double now = start;
  long runs = 0;
  do {
    run_chunk(inputs + runs % count * step, batch_, y.data());
    ++runs;
    now = seconds_now();
  } while (now - start < seconds);
  return {runs, now - start, involuntary_switches() - before};
}

std::vector<std::pair<std::string, double>> Program::profile(const float* inputs, size_t count, long runs) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<double> total(steps_.size() + 2, 0.0);
  std::vector<float> y(output().elements() * batch_);
  for (long r = 0; r < runs; ++r) {
    const float* x = inputs + r % count * input().elements() * batch_;
    threads_.run([&](int thread) {
      const Task t = task(batch_, thread);
      double last = seconds_now();
      const auto lap = [&](size_t i) {
        threads_.barrier();
        const double now = seconds_now();
        if (thread == 0) total[i] += now - last;
        last = now;
      };
      load_input(x, t);
      lap(0);
      for (size_t i = 0; i < steps_.size(); ++i) {
        steps_[i].run(t);
        lap(i + 1);
      }
      save_output(output_, y.data(), t);
      lap(steps_.size() + 1);
    });
  }
  std::vector<std::pair<std::string, double>> result{{"<input>", total[0] / runs}};
  for (size_t i = 0; i < steps_.size(); ++i) result.emplace_back(steps_[i].name, total[i + 1] / runs);
  result.emplace_back("<output>", total.back() / runs);
  return result;
}

void Program::trace(const float* x, int images, const std::function<void(int, const float*)>& visit) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<float> values;
  const auto show = [&](int tensor) {
    values.resize(tensors_[tensor].elements() * images);
    save_output(tensor, values.data(), {images, 0, 1, nullptr});
    visit(tensor, values.data());
  };
  threads_.run([&](int thread) {
    load_input(x, task(images, thread));
    threads_.barrier();
    if (thread == 0) show(input_);
    for (const Step& step : steps_) {
      run_step(step, task(images, thread));
      if (thread == 0) show(step.output);
      threads_.barrier();
    }
  });
}

}  // namespace trimtab
