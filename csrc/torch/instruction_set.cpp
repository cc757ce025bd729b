// The instruction set of the kernels and how they take sparse gates, for dyncp_kernels/_extension.py (through ctypes,
// not as ops).
#include "core/dyncp.h"
#include "core/gated_conv.h"
#include "core/isa.h"

#include <cstring>
#include <exception>
#include <string>

namespace {

int report(const std::string& text, char* buffer, int size) {
  std::strncpy(buffer, text.c_str(), size - 1);
  buffer[size - 1] = '\0';
  return 0;
}

}  // namespace

// Each writes a text of at most size - 1 characters and returns 0, or 1 when the text is an error message.
extern "C" DYNCP_API int dyncp_instruction_set(char* buffer, int size) {
  try {
    return report(dyncp::isa_name(dyncp::active_isa()), buffer, size);
  } catch (const std::exception& error) {
    report(error.what(), buffer, size);
    return 1;
  }
}

extern "C" DYNCP_API int dyncp_set_instruction_set(const char* name, char* buffer, int size) {
  try {
    dyncp::set_active_isa(name);
    return report(name, buffer, size);
  } catch (const std::exception& error) {
    report(error.what(), buffer, size);
    return 1;
  }
}

extern "C" DYNCP_API int dyncp_set_offline_strategy(const char* name, char* buffer, int size) {
  try {
    dyncp::set_offline_strategy(name);
    return report(name, buffer, size);
  } catch (const std::exception& error) {
    report(error.what(), buffer, size);
    return 1;
  }
}

extern "C" DYNCP_API int dyncp_supported_instruction_sets(char* buffer, int size) {
  std::string names;
  for (dyncp::Isa isa : dyncp::supported_isas())
    names += (names.empty() ? "" : ",") + std::string(dyncp::isa_name(isa));
  return report(names, buffer, size);
}
