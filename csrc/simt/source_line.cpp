// From an address in this library to a line of the source, by binutils' addr2line: it is asked only
// when a check has failed, and knows which inlined functions an instruction came through.
#include "simt/shadow.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

namespace simt {

std::string source_line(const void* instruction) {
  Dl_info info;
  if (!dladdr(instruction, &info)) return "an unknown place";
  // The call ends where it returns to: one byte before lies within it.
  const size_t offset =
      size_t(static_cast<const char*>(instruction) - static_cast<const char*>(info.dli_fbase)) - 1;
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx", info.dli_fname, offset);
  FILE* pipe = popen(command, "r");
  if (!pipe) return "an unknown place";
  // The innermost line that is not the emulator's own: a shuffle's or an atomic's caller.
  const std::string own = std::string(__FILE__).substr(0, std::string(__FILE__).rfind('/') + 1);
  std::string found;
  char line[4096];
  while (std::fgets(line, sizeof line, pipe)) {
    if (!found.empty() || std::strncmp(line, own.c_str(), own.size()) == 0) continue;
    const char* slash = std::strrchr(line, '/');
    found = slash ? slash + 1 : line;
    found.erase(found.find_first_of(" \n"));  // " (discriminator 3)"
  }
  pclose(pipe);
  return found.empty() ? "an unknown place" : found;
}

}  // namespace simt
