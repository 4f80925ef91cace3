// A stand-in for the NVIDIA driver, for tests: libcuda.so.1 as far as PyCUDA and CUDA graphs need it here, on the CPU.
//
// Device memory is ordinary memory, filled with 0xCD; whatever touches memory that is not allocated is refused.  Modules
// are real cubins: the ELF file says which kernels it holds and how many bytes of parameters each takes.  A launch calls
// back into Python (fake_cuda_set_runner), which runs the kernel in whatever form it has on the CPU, found by the cubin's
// hash.  Streams are as lazy as can be: nothing runs before something waits for it, so that a missing wait shows.
//
// The environment describes the machine, and is read at each call: FAKE_CUDA_GPUS (1), FAKE_CUDA_CAPABILITY (90),
// FAKE_CUDA_MEMORY (bytes, 2^33).  What is refused is explained on standard error if FAKE_CUDA_EXPLAIN is set.

#define CUDA_ENABLE_DEPRECATED
#include <cuda.h>
#undef cuEventElapsedTime
#include <elf.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))
#define API(name, ...) EXPORTED CUresult name(__VA_ARGS__)

// Returns nonzero if the kernel failed.  `shape` is the grid, the block and the bytes of dynamic shared memory.
typedef int (*Runner)(uint64_t cubin, const char* kernel, const unsigned* shape, const void* arguments, size_t bytes);
typedef std::vector<std::function<void()>> Work;

struct CUctx_st {};
struct CUstream_st {
  bool capturing = false;
  Work captured, waiting;
};
struct CUevent_st {
  std::set<CUstream> recorded;
};
struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};
struct CUfunc_st {
  std::string name;
  uint64_t cubin = 0;
  unsigned bytes = 0;            // of parameters
  unsigned most_shared = 49152;  // dynamic shared memory
};
struct CUmod_st {
  std::map<std::string, CUfunc_st> functions;
};

namespace {

constexpr int kCubin = 190;          // e_machine
constexpr int kEntry = 0x10;         // st_other: a kernel
constexpr int kParameterBytes = 25;  // EIATTR_CBANK_PARAM_SIZE in .nv.info.<kernel>
constexpr int kSized = 4;            // format of an attribute that carries its size

std::recursive_mutex mutex;
std::map<char*, size_t> device_memory, pinned_memory;
size_t used = 0;
std::set<CUstream> streams;
CUctx_st primary;
thread_local std::vector<CUcontext> contexts;
bool initialized = false;
CUresult failure = CUDA_SUCCESS;  // of a launch, reported by the next call that waits
Runner runner = nullptr;

size_t setting(const char* name, size_t otherwise) {
  const char* value = getenv(name);
  return value ? strtoull(value, nullptr, 10) : otherwise;
}
size_t total() { return setting("FAKE_CUDA_MEMORY", size_t(1) << 33); }
int capability() { return int(setting("FAKE_CUDA_CAPABILITY", 90)); }

CUresult refuse(CUresult result, const char* why) {
  if (getenv("FAKE_CUDA_EXPLAIN")) fprintf(stderr, "fake_cuda: %s\n", why);
  return result;
}

#define ENTER()                                         \
  std::lock_guard<std::recursive_mutex> lock(mutex);    \
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;  \
  if (contexts.empty()) return refuse(CUDA_ERROR_INVALID_CONTEXT, __func__)

CUresult reported() {
  const CUresult result = failure;
  failure = CUDA_SUCCESS;
  return result;
}
void run_waiting(CUstream stream) {
  Work work;
  work.swap(stream->waiting);
  for (auto& step : work) step();
}
void run_all() {
  for (CUstream stream : streams) run_waiting(stream);
}
CUresult submit(CUstream stream, std::function<void()> step) {
  if (!stream) {  // the default stream waits for all others
    for (CUstream other : streams)
      if (other->capturing) return refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "default stream during a capture");
    run_all();
    step();
    return reported();
  }
  (stream->capturing ? stream->captured : stream->waiting).push_back(std::move(step));
  return CUDA_SUCCESS;
}

bool inside(const std::map<char*, size_t>& memory, const void* pointer, size_t bytes) {
  auto next = memory.upper_bound((char*)pointer);
  if (next == memory.begin()) return false;
  --next;
  return (char*)pointer + bytes <= next->first + next->second;
}
CUresult allocate(std::map<char*, size_t>& memory, void** pointer, size_t bytes) {
  if (!bytes) return CUDA_ERROR_INVALID_VALUE;
  if (used + bytes > total()) return CUDA_ERROR_OUT_OF_MEMORY;
  char* got = (char*)aligned_alloc(512, (bytes + 511) / 512 * 512);
  if (!got) return CUDA_ERROR_OUT_OF_MEMORY;
  memset(got, 0xCD, bytes);
  memory[got] = bytes;
  used += bytes;
  *pointer = got;
  return CUDA_SUCCESS;
}
CUresult release(std::map<char*, size_t>& memory, void* pointer) {
  auto found = memory.find((char*)pointer);
  if (found == memory.end()) return refuse(CUDA_ERROR_INVALID_VALUE, "freed what is not allocated");
  run_all();
  used -= found->second;
  memory.erase(found);
  free(pointer);
  return CUDA_SUCCESS;
}
CUresult copy(void* target, const void* source, size_t bytes, const void* on_device, CUstream stream) {
  if (!inside(device_memory, on_device, bytes)) return refuse(CUDA_ERROR_INVALID_VALUE, "copy outside an allocation");
  return submit(stream, [=] { memcpy(target, source, bytes); });
}

uint64_t hash(const void* image, size_t bytes) {  // FNV-1a
  uint64_t value = 0xcbf29ce484222325ull;
  for (size_t i = 0; i < bytes; ++i) value = (value ^ ((const unsigned char*)image)[i]) * 0x100000001b3ull;
  return value;
}
size_t length(const char* image) {
  const auto* header = (const Elf64_Ehdr*)image;
  const auto* sections = (const Elf64_Shdr*)(image + header->e_shoff);
  size_t end = header->e_shoff + header->e_shnum * sizeof(Elf64_Shdr);
  if (header->e_phnum) end = std::max<size_t>(end, header->e_phoff + header->e_phnum * sizeof(Elf64_Phdr));
  for (int i = 0; i < header->e_shnum; ++i)
    if (sections[i].sh_type != SHT_NOBITS) end = std::max<size_t>(end, sections[i].sh_offset + sections[i].sh_size);
  return end;
}

// Reads a kernel's attributes: a byte of format, a byte of name, two bytes of value or of size.
void read_attributes(const char* at, const char* end, CUfunc_st& function) {
  while (at < end) {
    uint16_t value;
    memcpy(&value, at + 2, 2);
    if (at[1] == kParameterBytes && at[0] != kSized) function.bytes = value;
    at += at[0] == kSized ? 4 + value : 4;
  }
}

CUresult load(CUmodule* module, const char* image) {
  const auto* header = (const Elf64_Ehdr*)image;
  if (memcmp(image, ELFMAG, 4) || header->e_machine != kCubin)
    return refuse(CUDA_ERROR_INVALID_IMAGE, "the module is not a cubin");
  const int sm = header->e_ident[EI_ABIVERSION] >= 8 ? (header->e_flags >> 8) & 0xff : header->e_flags & 0xff;
  if (sm / 10 != capability() / 10 || sm > capability()) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  const uint64_t cubin = hash(image, length(image));
  const auto* sections = (const Elf64_Shdr*)(image + header->e_shoff);
  const char* names = image + sections[header->e_shstrndx].sh_offset;
  auto* made = new CUmod_st;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = (const Elf64_Sym*)(image + sections[i].sh_offset);
    const char* strings = image + sections[sections[i].sh_link].sh_offset;
    for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); ++k)
      if (ELF64_ST_TYPE(symbols[k].st_info) == STT_FUNC && (symbols[k].st_other & kEntry)) {
        CUfunc_st& function = made->functions[strings + symbols[k].st_name];
        function.name = strings + symbols[k].st_name;
        function.cubin = cubin;
      }
  }
  const std::string info = ".nv.info.";
  for (int i = 0; i < header->e_shnum; ++i) {
    const std::string name = names + sections[i].sh_name;
    if (name.rfind(info, 0) || !made->functions.count(name.substr(info.size()))) continue;
    const char* begin = image + sections[i].sh_offset;
    read_attributes(begin, begin + sections[i].sh_size, made->functions[name.substr(info.size())]);
  }
  *module = made;
  return CUDA_SUCCESS;
}

}  // namespace

// -- for the tests

EXPORTED void fake_cuda_set_runner(Runner function) { runner = function; }
EXPORTED uint64_t fake_cuda_hash(const void* image, size_t bytes) { return hash(image, bytes); }
EXPORTED int fake_cuda_is_allocated(const void* pointer, size_t bytes) { return inside(device_memory, pointer, bytes); }
EXPORTED size_t fake_cuda_used() { return used; }

// -- the machine

API(cuInit, unsigned) {
  initialized = setting("FAKE_CUDA_GPUS", 1) > 0;
  return initialized ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
API(cuDriverGetVersion, int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
API(cuDeviceGetCount, int* count) { return *count = int(setting("FAKE_CUDA_GPUS", 1)), CUDA_SUCCESS; }
API(cuDeviceGet, CUdevice* device, int number) {
  if (number < 0 || number >= int(setting("FAKE_CUDA_GPUS", 1))) return CUDA_ERROR_INVALID_DEVICE;
  return *device = number, CUDA_SUCCESS;
}
API(cuDeviceGetName, char* name, int size, CUdevice) { return snprintf(name, size, "stand-in"), CUDA_SUCCESS; }
API(cuDeviceTotalMem_v2, size_t* bytes, CUdevice) { return *bytes = total(), CUDA_SUCCESS; }
API(cuDeviceGetAttribute, int* value, CUdevice_attribute attribute, CUdevice) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? capability() / 10
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? capability() % 10
           : attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT     ? 2
           : attribute == CU_DEVICE_ATTRIBUTE_WARP_SIZE                ? 32
                                                                       : 0;
  return CUDA_SUCCESS;
}
API(cuDeviceComputeCapability, int* major, int* minor, CUdevice) {
  return *major = capability() / 10, *minor = capability() % 10, CUDA_SUCCESS;
}
API(cuGetErrorString, CUresult error, const char** text) {
  static const std::map<int, const char*> texts = {
      {CUDA_ERROR_INVALID_VALUE, "invalid argument"},
      {CUDA_ERROR_OUT_OF_MEMORY, "out of memory"},
      {CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"},
      {CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"},
      {CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"},
      {CUDA_ERROR_INVALID_CONTEXT, "invalid device context"},
      {CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"},
      {CUDA_ERROR_NOT_FOUND, "named symbol not found"},
      {CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"},
      {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"}};
  auto found = texts.find(error);
  return *text = found == texts.end() ? "an error" : found->second, CUDA_SUCCESS;
}

// -- contexts

API(cuDevicePrimaryCtxRetain, CUcontext* context, CUdevice) { return *context = &primary, CUDA_SUCCESS; }
API(cuDevicePrimaryCtxRelease_v2, CUdevice) { return CUDA_SUCCESS; }
API(cuCtxPushCurrent_v2, CUcontext context) { return contexts.push_back(context), CUDA_SUCCESS; }
API(cuCtxPopCurrent_v2, CUcontext* context) {
  if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return CUDA_SUCCESS;
}
API(cuCtxGetDevice, CUdevice* device) {
  ENTER();
  return *device = 0, CUDA_SUCCESS;
}
API(cuCtxGetApiVersion, CUcontext, unsigned* version) { return *version = 3020, CUDA_SUCCESS; }

// -- memory

API(cuMemGetInfo_v2, size_t* available, size_t* all) {
  ENTER();
  return *available = total() - used, *all = total(), CUDA_SUCCESS;
}
API(cuMemAlloc_v2, CUdeviceptr* pointer, size_t bytes) {
  ENTER();
  return allocate(device_memory, (void**)pointer, bytes);
}
API(cuMemFree_v2, CUdeviceptr pointer) {
  ENTER();
  return release(device_memory, (void*)pointer);
}
API(cuMemHostAlloc, void** pointer, size_t bytes, unsigned) {
  ENTER();
  return allocate(pinned_memory, pointer, bytes);
}
API(cuMemFreeHost, void* pointer) {
  ENTER();
  return release(pinned_memory, pointer);
}
API(cuMemcpyHtoDAsync_v2, CUdeviceptr target, const void* source, size_t bytes, CUstream stream) {
  ENTER();
  if (!inside(pinned_memory, source, bytes)) return refuse(CUDA_ERROR_NOT_SUPPORTED, "upload from pageable memory");
  return copy((void*)target, source, bytes, (void*)target, stream);
}
API(cuMemcpyDtoHAsync_v2, void* target, CUdeviceptr source, size_t bytes, CUstream stream) {
  ENTER();
  if (!inside(pinned_memory, target, bytes)) return refuse(CUDA_ERROR_NOT_SUPPORTED, "download to pageable memory");
  return copy(target, (void*)source, bytes, (void*)source, stream);
}
API(cuMemsetD8Async, CUdeviceptr target, unsigned char value, size_t bytes, CUstream stream) {
  ENTER();
  if (!inside(device_memory, (void*)target, bytes)) return refuse(CUDA_ERROR_INVALID_VALUE, "memset");
  return submit(stream, [=] { memset((void*)target, value, bytes); });
}

// -- streams and events

API(cuStreamCreate, CUstream* stream, unsigned) {
  ENTER();
  streams.insert(*stream = new CUstream_st);
  return CUDA_SUCCESS;
}
API(cuStreamDestroy_v2, CUstream stream) {
  ENTER();
  run_waiting(stream);
  streams.erase(stream);
  delete stream;
  return CUDA_SUCCESS;
}
API(cuStreamSynchronize, CUstream stream) {
  ENTER();
  if (stream && stream->capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream) run_waiting(stream);
  if (!stream) run_all();
  return reported();
}
API(cuEventCreate, CUevent* event, unsigned) {
  ENTER();
  return *event = new CUevent_st, CUDA_SUCCESS;
}
API(cuEventDestroy_v2, CUevent event) {
  ENTER();
  run_all();
  delete event;
  return CUDA_SUCCESS;
}
API(cuEventRecord, CUevent event, CUstream stream) {
  ENTER();
  event->recorded = {stream};
  return submit(stream, [=] { event->recorded.clear(); });
}
API(cuEventSynchronize, CUevent event) {
  ENTER();
  const std::set<CUstream> recorded = event->recorded;
  for (CUstream stream : recorded) run_waiting(stream);
  return reported();
}

// -- modules and launches

API(cuModuleLoadDataEx, CUmodule* module, const void* image, unsigned count, CUjit_option* options, void** values) {
  ENTER();
  for (unsigned i = 0; i < count; ++i)  // nothing is written to the logs
    if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES || options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
      values[i] = nullptr;
  return load(module, (const char*)image);
}
API(cuModuleUnload, CUmodule module) {
  ENTER();
  run_all();
  delete module;
  return CUDA_SUCCESS;
}
API(cuModuleGetFunction, CUfunction* function, CUmodule module, const char* name) {
  ENTER();
  auto found = module->functions.find(name);
  if (found == module->functions.end()) return CUDA_ERROR_NOT_FOUND;
  return *function = &found->second, CUDA_SUCCESS;
}
API(cuFuncSetAttribute, CUfunction function, CUfunction_attribute attribute, int value) {
  ENTER();
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_NOT_SUPPORTED;
  if (value > 232448) return refuse(CUDA_ERROR_INVALID_VALUE, "more shared memory than there is");
  return function->most_shared = value, CUDA_SUCCESS;
}
API(cuLaunchKernel, CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared, CUstream stream, void**, void** extra) {
  ENTER();
  const char* arguments = nullptr;
  size_t bytes = 0;
  for (void** item = extra; item && *item != CU_LAUNCH_PARAM_END; item += 2) {
    if (*item == CU_LAUNCH_PARAM_BUFFER_POINTER) arguments = (const char*)item[1];
    if (*item == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *(size_t*)item[1];
  }
  if (!arguments || bytes != f->bytes) return refuse(CUDA_ERROR_INVALID_VALUE, "not the cubin's bytes of parameters");
  if (!gx || !gy || !gz || !bx || !by || !bz || gx > 0x7fffffffu || gy > 65535 || gz > 65535 ||
      uint64_t(bx) * by * bz > 1024 || shared > f->most_shared)
    return refuse(CUDA_ERROR_INVALID_VALUE, "grid, block or shared memory");
  const std::string packed(arguments, bytes);
  return submit(stream, [=] {
    const unsigned shape[] = {gx, gy, gz, bx, by, bz, shared};
    if (runner(f->cubin, f->name.c_str(), shape, packed.data(), packed.size())) failure = CUDA_ERROR_LAUNCH_FAILED;
  });
}

// -- graphs

API(cuStreamBeginCapture_v2, CUstream stream, CUstreamCaptureMode) {
  ENTER();
  if (!stream || stream->capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  stream->capturing = true;
  return CUDA_SUCCESS;
}
API(cuStreamEndCapture, CUstream stream, CUgraph* graph) {
  ENTER();
  if (!stream || !stream->capturing) return CUDA_ERROR_INVALID_VALUE;
  stream->capturing = false;
  *graph = new CUgraph_st;
  (*graph)->work.swap(stream->captured);
  return CUDA_SUCCESS;
}
API(cuGraphInstantiateWithFlags, CUgraphExec* executable, CUgraph graph, unsigned long long) {
  ENTER();
  return *executable = new CUgraphExec_st{graph->work}, CUDA_SUCCESS;
}
API(cuGraphLaunch, CUgraphExec executable, CUstream stream) {
  ENTER();
  for (auto& step : executable->work) submit(stream, step);
  return CUDA_SUCCESS;
}
API(cuGraphDestroy, CUgraph graph) {
  ENTER();
  delete graph;
  return CUDA_SUCCESS;
}
API(cuGraphExecDestroy, CUgraphExec executable) {
  ENTER();
  run_all();
  delete executable;
  return CUDA_SUCCESS;
}

#include "stubs.inc"  // whatever else PyCUDA imports: must be there when it is loaded, answers that it is not supported
