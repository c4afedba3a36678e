// A few threads that run one function together and meet at a barrier between its steps.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace trimtab {

class ThreadPool {
 public:
  explicit ThreadPool(int size) : size_(size) {
    try {
      for (int i = 1; i < size; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {  // the system has no more threads to give
      stop();
      throw;
    }
  }

  ~ThreadPool() { stop(); }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Calls body(thread) on every thread, this one as thread 0, and returns when all have returned.
  void run(const std::function<void(int)>& body) {
    if (size_ == 1) return body(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      body_ = &body;
      ++round_;
    }
    wake_.notify_all();
    body(0);
    barrier();
  }

  // Waits, spinning, until every thread of the run has come here.
  void barrier() {
    if (size_ == 1) return;
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins > 4000) std::this_thread::yield();  // the other thread may need this core
    }
  }

 private:
  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  void work(int thread) {
    for (long seen = 0;;) {
      const std::function<void(int)>* body;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
        if (stopping_) return;
        seen = round_;
        body = body_;
      }
      (*body)(thread);
      barrier();
    }
  }

  const int size_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* body_ = nullptr;
  long round_ = 0;
  bool stopping_ = false;
  std::atomic<int> arrived_{0}, phase_{0};
};

}  // namespace trimtab
