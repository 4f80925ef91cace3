// The worker pool: walks a tape, each launch in parts that the caller's thread and the workers take in turn.
//
// A launch is published through one 64-bit ticket: its number, how many parts it has, and the next part.  A thread
// takes a part by raising the ticket with compare-and-swap.  The next launch is published only when all parts of this
// one are done, so whoever holds a part reads the right function and arguments; a worker that wakes late sees a ticket
// without parts.  Which thread runs which part makes no difference to the result.
//
// Workers spin for a while when there is nothing to do, because the next launch is usually microseconds away, and then
// sleep on a condition variable.  One tape runs at a time; other callers wait.  A forked child has no workers: it
// starts its own at its first tape.

#include "host.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

thread_local HostPart host_part = {0, 1};

namespace {

constexpr int kSpins = 20000;  // about 100 µs before a worker sleeps

struct Scratch {
  float* memory = nullptr;
  size_t elements = 0;
  ~Scratch() { std::free(memory); }
};
thread_local Scratch scratch;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back(&Pool::work, this);
  }

  ~Pool() {
    stop_ = true;
    wake();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return threads_; }

  // Returns false when memory ran out in any part.
  bool run(const HostOp* ops, int64_t count) {
    failed_ = false;
    for (int64_t i = 0; i < count && !failed_; ++i) {
      const HostOp& op = ops[i];
      if (threads_ == 1 || op.parts == 1) {
        for (int64_t part = 0; part < op.parts; ++part) run_part(op.run, op.args, (int)part, (int)op.parts);
      } else {
        publish(op);
        while (take()) {
        }
        for (int spins = 0; done_.load(std::memory_order_acquire) < op.parts; ++spins) relax(spins);
      }
    }
    return !failed_;
  }

 private:
  static void relax(int spins) {
    if (spins < kSpins) pause();
    else std::this_thread::yield();
  }

  void run_part(void (*run)(const void*), const void* args, int part, int parts) {
    host_part = {part, parts};
    try {
      run(args);
    } catch (const std::bad_alloc&) {
      failed_ = true;
    }
  }

  void publish(const HostOp& op) {
    run_.store(op.run, std::memory_order_relaxed);
    args_.store(op.args, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    number_ += 1;
    ticket_.store(number_ << 32 | (uint64_t)op.parts << 16, std::memory_order_release);
    if (sleepers_.load(std::memory_order_relaxed) > 0) wake();
  }

  // Runs one part of the present launch; false when none is left.
  bool take() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
      const int parts = (int)(ticket >> 16 & 0xffff), part = (int)(ticket & 0xffff);
      if (part >= parts) return false;
      if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) {
        run_part(run_.load(std::memory_order_relaxed), args_.load(std::memory_order_relaxed), part, parts);
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
  }

  void work() {
    int spins = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      if (take()) {
        spins = 0;
      } else if (++spins < kSpins) {
        pause();
      } else {
        sleep();
        spins = 0;
      }
    }
  }

  void sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t rounds = rounds_;
    sleepers_.fetch_add(1);
    awake_.wait(lock, [&] { return rounds_ != rounds || stop_.load(); });
    sleepers_.fetch_sub(1);
  }

  void wake() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      rounds_ += 1;
    }
    awake_.notify_all();
  }

  const int threads_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stop_{false};

  uint64_t number_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<void (*)(const void*)> run_{nullptr};
  std::atomic<const void*> args_{nullptr};
  std::atomic<bool> failed_{false};

  std::mutex mutex_;
  std::condition_variable awake_;
  std::atomic<int> sleepers_{0};
  uint64_t rounds_ = 0;
};

// The pool of this process, and the lock under which one tape runs at a time.  Never destroyed: workers may outlive
// static destructors.
struct Process {
  std::mutex running;
  Pool* pool = nullptr;
  int threads = 1;
};
Process* process = new Process;

void before_fork() { process->running.lock(); }
void after_fork_in_parent() { process->running.unlock(); }
void after_fork_in_child() {
  const int threads = process->threads;
  process = new Process;  // the parent's workers do not exist here; its lock and pool are left behind
  process->threads = threads;
}

const int registered = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

}  // namespace

float* host_scratch(size_t elements) {
  if (elements > scratch.elements) {
    std::free(scratch.memory);
    scratch.memory = static_cast<float*>(std::aligned_alloc(64, (elements * sizeof(float) + 63) / 64 * 64));
    scratch.elements = scratch.memory ? elements : 0;
    if (!scratch.memory) throw std::bad_alloc();
  }
  return scratch.memory;
}

// Sets the number of threads, the caller's included; they start at the next tape.
HOST_EXPORT void host_set_threads(int threads) {
  const std::lock_guard<std::mutex> lock(process->running);
  if (process->threads == threads) return;
  delete process->pool;
  process->pool = nullptr;
  process->threads = threads;
}

// Runs `count` launches in order.  Returns 0, or 1 when memory ran out.
HOST_EXPORT int host_run(const HostOp* ops, int64_t count) {
  const std::lock_guard<std::mutex> lock(process->running);
  if (!process->pool) process->pool = new Pool(process->threads);
  return process->pool->run(ops, count) ? 0 : 1;
}

// The best instruction set of this processor that the library is built for: 0 baseline, 1 AVX2, 2 AVX-512.
HOST_EXPORT int host_instruction_set() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}
