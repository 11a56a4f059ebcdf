// A float32 as its bits, and back.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/step.h"

namespace ak {

AK_HD float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

AK_HD uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace ak
