// One voice for native error messages: who, the rule, what was given.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace vlcal {

template <class... Parts>
[[noreturn]] void refuse(const char* who, const Parts&... parts) {
  std::ostringstream message;
  message << who << ": ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace vlcal
