// CUDA's runtime for kernels that a plain C++ compiler builds and the CPU runs; test-only.
//
// Found in place of CUDA's own with -I to this folder. device.h has what a test sets and reads,
// scheduler.h how threads run and what is reported as a failed launch.
#pragma once

#include <math.h>

#include "host.h"
#include "intrinsics.h"

#define CUDART_VERSION 13000
