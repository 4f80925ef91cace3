// What the files of the host library share.
#pragma once

#include <cstddef>
#include <cstdint>

#define HOST_EXPORT extern "C" __attribute__((visibility("default")))

// The part of a launch that the calling thread runs (the same declaration as in dialect.cuh).
struct HostPart {
  int part, parts;
};
extern thread_local HostPart host_part;

// One launch: `run(args)` is called `parts` times (at most 65535), each time with another `host_part`.
struct HostOp {
  void (*run)(const void* args);
  const void* args;
  int64_t parts;
};

// Memory of the calling thread for the length of one part; grows, is reused, and is freed with the thread.
float* host_scratch(size_t elements);
