// CUDA on the CPU, for tests: a .cu compiled by g++ behind this header runs with real blocks, threads, barriers, shared
// memory, shuffles, cp.async and mma.sync.  emulation.py compiles and calls it.
//
// A CUDA thread is a fiber: it runs until it waits for others or returns, then the scheduler takes any other one that
// can run.  Half of the blocks take any thread, the others run one warp as far as it can go, then any other warp: some
// races show only where one warp is ahead.  A block stays on one OS thread; several OS threads take blocks in random
// order.  All this follows from the launch's seed: what needs a barrier and has none goes wrong, and goes wrong again.
//
// What CUDA leaves undefined is an error or shows:
//   a barrier that not every thread of the block reaches at the same line     error
//   a warp operation that not every thread named in its mask reaches          error
//   shared memory that nobody wrote                                           0xff bytes, as floats NaN
//   the target of a cp.async before its wait                                  0xff bytes; the data comes with the wait
//   a misaligned cp.async, or one whose target is not shared memory           error
//   a read or write outside of a buffer or of a shared array                  AddressSanitizer build
// Not emulated: the weak ordering of memory between blocks, bank conflicts, coalescing, the time anything takes.
#pragma once

#ifndef __x86_64__
#error "the emulation switches stacks with x86-64 instructions"
#endif

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// -- the language

#define __CUDACC__ 1
#define EMULATION 1
#ifdef EMULATED_ARCH
#define __CUDA_ARCH__ EMULATED_ARCH
#else
#define __CUDA_ARCH__ 800
#endif
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#undef __noinline__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define EMULATION_VECTOR(type, name)                                                     \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                               \
  struct name##3 { type x, y, z; };                                                      \
  struct alignas(sizeof(type) == 1 ? 4 : 16) name##4 { type x, y, z, w; };               \
  static inline name##2 make_##name##2(type x, type y) { return {x, y}; }                \
  static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }     \
  static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATION_VECTOR(float, float)
EMULATION_VECTOR(int, int)
EMULATION_VECTOR(unsigned, uint)
EMULATION_VECTOR(unsigned char, uchar)
#undef EMULATION_VECTOR
struct alignas(16) double2 {
  double x, y;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::current->block->index)
#define blockDim (emulation::current->block->launch->block)
#define gridDim (emulation::current->block->launch->grid)
#define warpSize 32

namespace emulation {

// -- what a launch is made of

constexpr int WARP = 32, MAX_THREADS = 1024;
constexpr size_t STATIC_SHARED = 48 << 10, SHARED = 227 << 10;  // bytes a block may have, on compute capability 9.0
constexpr size_t STACK = 256 << 10, PAGE = 4096;
constexpr int UNDEFINED = 0xff;  // the bytes of what nobody wrote

struct Kernel {
  const char* name;
  void (*call)(const void* args);
  unsigned parameters;
  const unsigned *offsets, *sizes;  // of the parameters, in bytes
  unsigned bytes;                   // of all parameters, without padding behind the last
  unsigned max_threads;             // of a block, as __launch_bounds__ says
};

struct Launch {
  const Kernel* kernel;
  dim3 grid, block;
  unsigned threads;
  size_t dynamic_shared;
  uint64_t seed;
  const void* args;
  std::vector<unsigned> order;  // of the blocks
  std::atomic<size_t> next{0};  // in `order`
  std::mutex mutex;
  std::string error;
  std::atomic<bool> failed{false};
};

struct Block;
struct Thread;
using Operation = void (*)(Thread* const* lanes);  // over one warp; lanes that do not take part are null

enum State { READY, AT_BARRIER, IN_WARP, RETURNED };

// Where a thread waits.
struct Place {
  const char *what, *file;
  int line;
};

struct Copy {
  void* to;
  const void* from;
  int size, valid;  // bytes; those after `valid` become zero
};

struct Thread {
  uint3 index;
  unsigned number;
  Block* block;
  State state;
  Place place;
  unsigned mask;        // of the warp operation it waits in
  Operation operation;  // reads `in` of every lane, writes `out` of every lane
  alignas(16) unsigned char in[64], out[64];
  std::vector<Copy> copies;    // begun by cp.async, not yet made
  std::vector<size_t> groups;  // how many of `copies` lie before the end of each committed group
  char* stack = nullptr;       // while it has begun and not returned
  void* stack_pointer;
};

struct SharedVariable {
  const void* key;
  const char* name;
  char *memory, *begin;
  size_t bytes;
};

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull) {}
  unsigned below(unsigned n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((state >> 32) * n >> 32);
  }
};

// An OS thread's: stacks are kept from block to block.
struct Worker {
  std::vector<Thread> threads;
  std::vector<char*> stacks;  // free ones
  void* stack_pointer;        // of the scheduler
#ifdef __SANITIZE_ADDRESS__
  const void* bottom = nullptr;  // of the scheduler's stack
  size_t size = 0;
#endif
  Worker() : threads(MAX_THREADS) {}
};

struct Block {
  Launch* launch;
  Worker* worker;
  uint3 index;
  Random random;
  std::vector<unsigned> ready[MAX_THREADS / WARP];  // the threads that can run, by warp
  const bool warp_by_warp;
  unsigned warp = 0;  // that ran last
  unsigned at_barrier = 0, returned = 0;
  std::vector<SharedVariable> shared;
  size_t static_shared = 0;
  std::string error;

  Block(Launch* launch, Worker* worker, unsigned number)
      : launch(launch),
        worker(worker),
        index{number % launch->grid.x, number / launch->grid.x % launch->grid.y,
              number / launch->grid.x / launch->grid.y},
        random(launch->seed + 0x632be59bd9b4e019ull * number),
        warp_by_warp(random.below(2)) {}
  ~Block() {
    for (SharedVariable& variable : shared) free(variable.memory);
  }
  Thread& thread(unsigned number) { return worker->threads[number]; }
  bool contains(const void* begin, size_t bytes) const {
    for (const SharedVariable& variable : shared) {
      if (begin >= variable.begin && (const char*)begin + bytes <= variable.begin + variable.bytes) return true;
    }
    return false;
  }
};

static thread_local Thread* current __attribute__((tls_model("initial-exec")));

// -- switching between stacks

extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** save, void* load);
__asm__(R"(
.text
.local emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");

// From the scheduler to a thread; returns when the thread waits or has returned.
static inline void resume(Thread& thread) {
  Worker& worker = *thread.block->worker;
  current = &thread;
#ifdef __SANITIZE_ADDRESS__
  void* fake;
  __sanitizer_start_switch_fiber(&fake, thread.stack, STACK);
#endif
  emulation_switch(&worker.stack_pointer, thread.stack_pointer);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// From a thread to the scheduler; comes back when the thread is resumed, never if it has ended.  Then its frame must
// leave no guards on the stack, for the next thread there.
__attribute__((no_sanitize_address)) static inline void suspend(Thread& thread, bool ends = false) {
  Worker& worker = *thread.block->worker;
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake, worker.bottom, worker.size);
#endif
  (void)ends;
  emulation_switch(&thread.stack_pointer, worker.stack_pointer);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, &worker.bottom, &worker.size);
#endif
}

// Ends the block with an error; called by one of its threads.
[[noreturn]] static inline void fail(const std::string& what) {
  Thread& self = *current;
  std::ostringstream text;
  text << "thread (" << self.index.x << ", " << self.index.y << ", " << self.index.z << "): " << what;
  self.block->error = text.str();
  suspend(self, true);
  std::abort();
}

// -- waiting

static inline std::string place_text(const Place& place) {
  return std::string(place.what) + " (" + place.file + ":" + std::to_string(place.line) + ")";
}

// The threads of a block by what they do: "threads 0-31 wait at __syncthreads (gemm.cu:7); threads 32-63 have returned"
static inline std::string who_waits(Block& block) {
  std::vector<std::pair<std::string, std::string>> groups;
  for (unsigned begin = 0, end; begin < block.launch->threads; begin = end) {
    const auto doing = [&](unsigned number) {
      const Thread& thread = block.thread(number);
      if (thread.state == RETURNED) return std::string("have returned");
      std::ostringstream text;
      text << "wait at " << place_text(thread.place);
      if (thread.state == IN_WARP) text << " with mask 0x" << std::hex << thread.mask;
      return text.str();
    };
    const std::string what = doing(begin);
    for (end = begin + 1; end < block.launch->threads && doing(end) == what;) ++end;
    const std::string range = std::to_string(begin) + (end - begin > 1 ? "-" + std::to_string(end - 1) : "");
    const auto same = [&](const auto& group) { return group.first == what; };
    const auto found = std::find_if(groups.begin(), groups.end(), same);
    if (found == groups.end()) {
      groups.emplace_back(what, range);
    } else {
      found->second += ", " + range;
    }
  }
  std::string text;
  for (const auto& [what, range] : groups) text += (text.empty() ? "threads " : "; threads ") + range + " " + what;
  return text;
}

static inline void make_ready(Thread& thread) {
  thread.state = READY;
  thread.block->ready[thread.number / WARP].push_back(thread.number);
}

static inline void barrier(Place place) {
  Thread& self = *current;
  Block& block = *self.block;
  const unsigned count = block.launch->threads;
  self.state = AT_BARRIER;
  self.place = place;
  if (++block.at_barrier == count) {
    for (unsigned number = 0; number < count; ++number) {
      const Place& other = block.thread(number).place;
      if (other.line != place.line || std::strcmp(other.file, place.file)) {
        fail("the threads of the block wait at different barriers: " + who_waits(block));
      }
    }
    block.at_barrier = 0;
    for (unsigned number = 0; number < count; ++number) make_ready(block.thread(number));
  }
  suspend(self);
}

// Runs the operation that the lanes of `mask` wait in, if all of them that have not returned do.
static inline void complete(Block& block, unsigned warp, unsigned mask, Operation operation) {
  Thread* lanes[WARP] = {};
  for (unsigned lane = 0; lane < WARP; ++lane) {
    const unsigned number = warp * WARP + lane;
    if (!(mask >> lane & 1) || number >= block.launch->threads) continue;
    Thread& thread = block.thread(number);
    if (thread.state == RETURNED) continue;
    if (thread.state != IN_WARP || thread.mask != mask || thread.operation != operation) return;
    lanes[lane] = &thread;
  }
  operation(lanes);
  for (Thread* lane : lanes) {
    if (lane) make_ready(*lane);
  }
}

// Waits for the lanes of `mask`; `self.in` becomes what the operation takes, the result is in `self.out`.
static inline void warp_operation(unsigned mask, Operation operation, Place place) {
  Thread& self = *current;
  if (!(mask >> self.number % WARP & 1)) fail("its mask does not name the thread itself at " + place_text(place));
  self.state = IN_WARP;
  self.mask = mask;
  self.operation = operation;
  self.place = place;
  complete(*self.block, self.number / WARP, mask, operation);
  suspend(self);
}

static inline void has_returned(Thread& self) {
  Block& block = *self.block;
  self.state = RETURNED;
  ++block.returned;
  const unsigned first = self.number / WARP * WARP;
  for (unsigned number = first; number < std::min(first + WARP, block.launch->threads); ++number) {
    Thread& other = block.thread(number);
    if (other.state == IN_WARP) complete(block, number / WARP, other.mask, other.operation);
  }
}

// -- running

static void thread_main() {
  Thread& self = *current;
#ifdef __SANITIZE_ADDRESS__
  Worker& worker = *self.block->worker;
  __sanitizer_finish_switch_fiber(nullptr, &worker.bottom, &worker.size);
#endif
  self.block->launch->kernel->call(self.block->launch->args);
  has_returned(self);
  suspend(self, true);
  std::abort();
}

static inline char* new_stack() {
  char* memory = (char*)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  mprotect(memory, PAGE, PROT_NONE);  // an overflow faults instead of overwriting a neighbour
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(memory + PAGE, STACK);  // a stack that was given up may have lain there
#endif
  return memory + PAGE;
}

static inline void begin(Thread& thread) {
  std::vector<char*>& stacks = thread.block->worker->stacks;
  if (stacks.empty()) stacks.push_back(new_stack());
  thread.stack = stacks.back();
  stacks.pop_back();
  void** top = (void**)(thread.stack + STACK) - 2;
  top[0] = (void*)thread_main;  // where emulation_switch returns to, with six zeros in the saved registers
  top[1] = nullptr;
  std::memset(top - 6, 0, 6 * sizeof(void*));
  thread.stack_pointer = top - 6;
}

// Returns a thread that can run, or null.
static inline Thread* next_thread(Block& block) {
  const unsigned warps = (block.launch->threads + WARP - 1) / WARP;
  if (!block.warp_by_warp || block.ready[block.warp].empty()) {
    const unsigned first = block.random.below(warps);
    for (unsigned i = 0; i < warps; ++i) {
      block.warp = (first + i) % warps;
      if (!block.ready[block.warp].empty()) break;
    }
  }
  std::vector<unsigned>& ready = block.ready[block.warp];
  if (ready.empty()) return nullptr;
  std::swap(ready[block.random.below(ready.size())], ready.back());
  Thread& thread = block.thread(ready.back());
  ready.pop_back();
  return &thread;
}

static inline void run_block(Launch& launch, Worker& worker, unsigned number) {
  Block block(&launch, &worker, number);
  if (launch.dynamic_shared) {
    char* memory = (char*)std::aligned_alloc(128, (launch.dynamic_shared + 127) / 128 * 128);
    std::memset(memory, UNDEFINED, launch.dynamic_shared);
    block.shared.push_back({nullptr, "dynamic", memory, memory, launch.dynamic_shared});
  }
  for (unsigned i = 0; i < launch.threads; ++i) {
    Thread& thread = worker.threads[i];
    thread.number = i;
    thread.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
    thread.block = &block;
    thread.copies.clear();
    thread.groups.clear();
    make_ready(thread);
  }
  for (Thread* next; block.error.empty() && (next = next_thread(block));) {
    Thread& thread = *next;
    if (!thread.stack) begin(thread);
    resume(thread);
    if (thread.state == RETURNED) {
      worker.stacks.push_back(thread.stack);
      thread.stack = nullptr;
    }
  }
  if (block.error.empty() && block.returned == launch.threads) return;
  if (block.error.empty()) block.error = "not every thread gets there: " + who_waits(block);
  for (Thread& thread : worker.threads) {  // the stacks of threads that never ended are not used again
    if (thread.stack) munmap(thread.stack - PAGE, STACK + PAGE);
    thread.stack = nullptr;
  }
  const std::lock_guard<std::mutex> lock(launch.mutex);
  if (launch.failed.exchange(true)) return;
  std::ostringstream text;
  text << "block (" << block.index.x << ", " << block.index.y << ", " << block.index.z << "): " << block.error;
  launch.error = text.str();
}

static inline void work(Launch& launch, Worker& worker) {
  for (size_t at; (at = launch.next++) < launch.order.size() && !launch.failed;) {
    run_block(launch, worker, launch.order[at]);
  }
}

static inline std::string check(const Launch& launch) {
  const dim3 &grid = launch.grid, &block = launch.block;
  std::ostringstream text;
  const uint64_t threads = (uint64_t)block.x * block.y * block.z;
  if (threads < 1 || threads > MAX_THREADS || block.z > 64) {
    text << "a block of " << block.x << " x " << block.y << " x " << block.z << " threads; expected 1 to 1024";
  } else if (threads > launch.kernel->max_threads) {
    text << "a block of " << threads << " threads; __launch_bounds__ says at most " << launch.kernel->max_threads;
  } else if (!grid.x || !grid.y || !grid.z || grid.x > INT_MAX || grid.y > 65535 || grid.z > 65535) {
    text << "a grid of " << grid.x << " x " << grid.y << " x " << grid.z << " blocks";
  } else if (launch.dynamic_shared > SHARED) {
    text << launch.dynamic_shared << " bytes of shared memory; a block has at most " << SHARED;
  }
  return text.str();
}

static inline void run(Launch& launch, unsigned os_threads) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  static std::vector<Worker*> workers;  // never deleted: what is in them may be in use when the process exits
  launch.error = check(launch);
  if (!launch.error.empty()) return;
  launch.threads = launch.block.x * launch.block.y * launch.block.z;
  launch.order.resize((size_t)launch.grid.x * launch.grid.y * launch.grid.z);
  for (size_t i = 0; i < launch.order.size(); ++i) launch.order[i] = i;
  std::shuffle(launch.order.begin(), launch.order.end(), std::mt19937_64(launch.seed));
  const size_t count = std::min<size_t>(os_threads, launch.order.size());
  while (workers.size() < std::max<size_t>(count, 1)) workers.push_back(new Worker);
  std::vector<std::thread> others;
  for (size_t i = 1; i < count; ++i) others.emplace_back([&launch, i] { work(launch, *workers[i]); });
  work(launch, *workers[0]);
  for (std::thread& other : others) other.join();
}

// -- shared memory: emulation.py turns  __shared__ T name[n];  into a reference to what these return

static inline void* shared_variable(const void* key, const char* name, size_t bytes, size_t alignment) {
  Block& block = *current->block;
  for (const SharedVariable& variable : block.shared) {
    if (variable.key == key) return variable.begin;
  }
  block.static_shared += bytes;
  if (block.static_shared > STATIC_SHARED) {
    fail("more than 49152 bytes of shared arrays, with '" + std::string(name) + "'");
  }
  if (block.static_shared + block.launch->dynamic_shared > SHARED) fail("more than 232448 bytes of shared memory");
#ifdef __SANITIZE_ADDRESS__
  const size_t offset = alignment % 16;  // no better aligned than the kernel asks for
#else
  const size_t offset = 0;
  (void)alignment;
#endif
  char* memory = nullptr;
  if (posix_memalign((void**)&memory, 128, bytes + offset)) std::abort();
  std::memset(memory, UNDEFINED, bytes + offset);
  block.shared.push_back({key, name, memory, memory + offset, bytes});
  return memory + offset;
}

template <typename T>
static inline T* dynamic_shared() {
  Block& block = *current->block;
  if (!block.launch->dynamic_shared) fail("the launch gives no dynamic shared memory");
  return (T*)block.shared[0].begin;
}

// -- warp operations

#define EMULATION_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <typename T>
struct Shuffle {
  T value;
  int source;  // a lane, or -1 for the thread's own
};

template <typename T>
static inline T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  const Shuffle<T> in{value, source};
  std::memcpy(current->in, &in, sizeof in);
  warp_operation(
      mask,
      [](Thread* const* lanes) {
        for (int lane = 0; lane < WARP; ++lane) {
          if (!lanes[lane]) continue;
          Shuffle<T> in;
          std::memcpy(&in, lanes[lane]->in, sizeof in);
          const Thread* from = lanes[in.source < 0 ? lane : in.source];
          std::memset(lanes[lane]->out, UNDEFINED, sizeof(T));  // what a lane without a source receives
          if (from) std::memcpy(lanes[lane]->out, from->in, sizeof(T));
        }
      },
      place);
  T out;
  std::memcpy(&out, current->out, sizeof out);
  return out;
}

static inline unsigned ballot(unsigned mask, bool vote, Place place) {
  current->in[0] = vote;
  warp_operation(
      mask,
      [](Thread* const* lanes) {
        unsigned votes = 0;
        for (int lane = 0; lane < WARP; ++lane) votes |= (unsigned)(lanes[lane] && lanes[lane]->in[0]) << lane;
        for (int lane = 0; lane < WARP; ++lane) {
          if (lanes[lane]) std::memcpy(lanes[lane]->out, &votes, sizeof votes);
        }
      },
      place);
  unsigned votes;
  std::memcpy(&votes, current->out, sizeof votes);
  return votes;
}

}  // namespace emulation

static inline void __syncthreads(EMULATION_PLACE) { emulation::barrier({"__syncthreads", file, line}); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_PLACE) {
  emulation::warp_operation(mask, [](emulation::Thread* const*) {}, {"__syncwarp", file, line});
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_PLACE) {
  const int lane = emulation::current->number % 32;
  return emulation::shuffle(mask, value, (lane & -width) | (source & (width - 1)), {"__shfl_sync", file, line});
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_PLACE) {
  const int lane = emulation::current->number % 32, source = lane ^ lanes;
  return emulation::shuffle(mask, value, source < (lane & -width) + width ? source : -1,
                            {"__shfl_xor_sync", file, line});
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMULATION_PLACE) {
  const int lane = emulation::current->number % 32, source = lane + (int)lanes;
  return emulation::shuffle(mask, value, source < (lane & -width) + width ? source : -1,
                            {"__shfl_down_sync", file, line});
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMULATION_PLACE) {
  const int lane = emulation::current->number % 32, source = lane - (int)lanes;
  return emulation::shuffle(mask, value, source >= (lane & -width) ? source : -1, {"__shfl_up_sync", file, line});
}
static inline unsigned __ballot_sync(unsigned mask, int vote, EMULATION_PLACE) {
  return emulation::ballot(mask, vote, {"__ballot_sync", file, line});
}
static inline int __any_sync(unsigned mask, int vote, EMULATION_PLACE) {
  return emulation::ballot(mask, vote, {"__any_sync", file, line}) != 0;
}
static inline int __all_sync(unsigned mask, int vote, EMULATION_PLACE) {
  return emulation::ballot(mask, !vote, {"__all_sync", file, line}) == 0;
}

// -- atomics: among fibers and among OS threads

template <typename T, typename Change>
static inline T emulated_atomic(T* address, Change change) {
  T old, next;
  __atomic_load(address, &old, __ATOMIC_SEQ_CST);
  do next = change(old);
  while (!__atomic_compare_exchange(address, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}
template <typename T>
static inline T atomicAdd(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T old) { return (T)(old + value); });
}
template <typename T>
static inline T atomicMax(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T old) { return std::max(old, value); });
}
template <typename T>
static inline T atomicMin(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T old) { return std::min(old, value); });
}
template <typename T>
static inline T atomicExch(T* address, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T) { return value; });
}
template <typename T>
static inline T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return emulated_atomic(address, [=](T old) { return old == expected ? value : old; });
}
static inline unsigned atomicInc(unsigned* address, unsigned last) {
  return emulated_atomic(address, [=](unsigned old) { return old >= last ? 0 : old + 1; });
}
static inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
static inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }

// -- arithmetic and memory

template <typename A, typename B>
static inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin((T)a, (T)b);
  return (T)b < (T)a ? (T)b : (T)a;
}
template <typename A, typename B>
static inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax((T)a, (T)b);
  return (T)a < (T)b ? (T)b : (T)a;
}
template <typename To, typename From>
static inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
static inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
#define __expf(x) std::exp((float)(x))  // glibc declares these names itself, so they are macros
#define __logf(x) std::log((float)(x))
#define __powf(x, y) std::pow((float)(x), (float)(y))
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((uint64_t)x * y >> 32); }
template <typename T>
static inline T __ldg(const T* address) {
  return *address;
}
template <typename T>
static inline T __ldcs(const T* address) {
  return *address;
}
template <typename T>
static inline T __ldcg(const T* address) {
  return *address;
}
template <typename T>
static inline void __stcs(T* address, T value) {
  *address = value;
}
static inline size_t __cvta_generic_to_shared(const void* address) { return (size_t)address; }
[[noreturn]] static inline void __trap() { emulation::fail("__trap()"); }

// -- the instructions of dialect.cuh

namespace emulation {

static inline void begin_copy(void* to, const void* from, int size, int valid) {
  Thread& self = *current;
  if (valid < 0 || valid > size) fail("cp.async of " + std::to_string(valid) + " bytes; expected 0 to the copy's size");
  if ((uintptr_t)to % size || (uintptr_t)from % size) {
    fail("cp.async of " + std::to_string(size) + " bytes with an address that is no multiple of that");
  }
  if (!self.block->contains(to, size)) fail("cp.async to an address outside of the block's shared memory");
  std::memset(to, UNDEFINED, size);  // from now on the copy may arrive at any time
  self.copies.push_back({to, from, size, valid});
}

// Makes the copies of all committed groups but the last `pending`.
static inline void end_copies(size_t pending) {
  Thread& self = *current;
  if (self.groups.size() <= pending) return;
  const size_t groups = self.groups.size() - pending, count = self.groups[groups - 1];
  for (size_t i = 0; i < count; ++i) {
    const Copy& copy = self.copies[i];
    std::memcpy(copy.to, copy.from, copy.valid);
    std::memset((char*)copy.to + copy.valid, 0, copy.size - copy.valid);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + count);
  self.groups.erase(self.groups.begin(), self.groups.begin() + groups);
  for (size_t& end : self.groups) end -= count;
}

// The tensor cores read a float's upper 19 bits and never look at the rest.
static inline float read_tf32(unsigned bits) { return __uint_as_float(bits & 0xffffe000u); }

// Their sums drop what a float cannot hold.
static inline float toward_zero(double sum) {
  const float nearest = (float)sum;
  return std::fabs((double)nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

struct Fragments {
  float d[4];
  unsigned a[4], b[2];
};

// D += A B for one warp: A 16x8, B 8x8, D 16x8.  With g = lane / 4 and t = lane % 4 a lane holds
//   A: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)     B: (t, g) (t + 4, g)     D: (g, 2t) (g, 2t + 1) (g + 8, 2t) ...
static inline void multiply_warp(Thread* const* lanes) {
  double a[16][8], b[8][8];
  for (int lane = 0; lane < WARP; ++lane) {
    if (!lanes[lane]) continue;  // mma_tf32 sees to it that none is missing
    Fragments in;
    std::memcpy(&in, lanes[lane]->in, sizeof in);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = read_tf32(in.a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = read_tf32(in.b[i]);
  }
  for (int lane = 0; lane < WARP; ++lane) {
    if (!lanes[lane]) continue;
    Fragments in;
    std::memcpy(&in, lanes[lane]->in, sizeof in);
    for (int i = 0; i < 4; ++i) {
      const double* row = a[lane / 4 + i / 2 * 8];
      const int n = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 8; k += 4) {  // four products at a time, as on compute capability 8.0
        in.d[i] = toward_zero(in.d[i] + (row[k] * b[k][n] + row[k + 1] * b[k + 1][n]) +
                              (row[k + 2] * b[k + 2][n] + row[k + 3] * b[k + 3][n]));
      }
    }
    std::memcpy(lanes[lane]->out, in.d, sizeof in.d);
  }
}

}  // namespace emulation

static inline void cp_async_16(void* to, const void* from, int bytes = 16) {
  emulation::begin_copy(to, from, 16, bytes);
}
static inline void cp_async_4(void* to, const void* from, int bytes = 4) { emulation::begin_copy(to, from, 4, bytes); }
static inline void cp_async_commit() { emulation::current->groups.push_back(emulation::current->copies.size()); }
template <int pending>
static inline void cp_async_wait() {
  emulation::end_copies(pending);
}
static inline unsigned to_tf32(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return 0x7fffffffu;
  return (bits + 0x1000u) & 0xffffe000u;  // to nearest, ties away from zero
}
static inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATION_PLACE) {
  emulation::Thread& self = *emulation::current;
  emulation::Fragments in;
  std::memcpy(in.d, d, sizeof d);
  std::memcpy(in.a, a, sizeof a);
  std::memcpy(in.b, b, sizeof b);
  std::memcpy(self.in, &in, sizeof in);
  if (self.block->launch->threads % 32) emulation::fail("mma.sync in a block that is not made of whole warps");
  emulation::warp_operation(0xffffffffu, emulation::multiply_warp, {"mma.sync", file, line});
  std::memcpy(d, self.out, sizeof d);
}

// -- the library's functions

#define EMULATION_LIBRARY(kernels)                                                                                  \
  extern "C" __attribute__((visibility("default"))) const emulation::Kernel* emulation_kernel(const char* name) {   \
    for (const emulation::Kernel& kernel : kernels) {                                                               \
      if (!std::strcmp(kernel.name, name)) return &kernel;                                                          \
    }                                                                                                               \
    return nullptr;                                                                                                 \
  }                                                                                                                 \
  extern "C" __attribute__((visibility("default"))) int emulation_launch(                                           \
      const char* name, const unsigned* grid, const unsigned* block, size_t shared_bytes, const void* args,         \
      uint64_t seed, unsigned os_threads, char* error, size_t error_bytes) {                                        \
    return emulation::launch(emulation_kernel(name), name, grid, block, shared_bytes, args, seed, os_threads, error, \
                             error_bytes);                                                                          \
  }

namespace emulation {

// Runs `kernel`; `args` are its parameters, packed as in C.  Returns 0, or 1 and writes the error's text.
static inline int launch(const Kernel* kernel, const char* name, const unsigned* grid, const unsigned* block,
                         size_t shared_bytes, const void* args, uint64_t seed, unsigned os_threads, char* error,
                         size_t error_bytes) {
  Launch launch;
  if (kernel) {
    std::vector<std::max_align_t> aligned(kernel->bytes / sizeof(std::max_align_t) + 2);
    std::memcpy(aligned.data(), args, kernel->bytes);
    launch.kernel = kernel;
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block = {block[0], block[1], block[2]};
    launch.dynamic_shared = shared_bytes;
    launch.seed = seed;
    launch.args = aligned.data();
    run(launch, os_threads);
  } else {
    launch.error = "there is no such kernel";
  }
  if (launch.error.empty()) return 0;
  std::snprintf(error, error_bytes, "kernel %s, seed %llu: %s", name, (unsigned long long)seed, launch.error.c_str());
  return 1;
}

}  // namespace emulation
