// From an address in this library to a line of the source, by binutils' addr2line: it is asked only
// when a check has failed, and knows which inlined functions an instruction came through.
#include "simt/shadow.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

namespace simt {

std::string source_line(const void* instruction) {
  const std::string unknown = "an unknown place";
  Dl_info info;
  if (!dladdr(instruction, &info)) return unknown;
  // The call ends where it returns to: one byte before lies within it.
  const char* base = static_cast<const char*>(info.dli_fbase);
  const size_t offset = size_t(static_cast<const char*>(instruction) - base) - 1;
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx", info.dli_fname, offset);
  FILE* pipe = popen(command, "r");
  if (!pipe) return unknown;
  // From the innermost inlined function outwards, but for the emulator's own: this folder's, not
  // those of bugs/ below it.
  const std::string own = std::string(__FILE__).substr(0, std::string(__FILE__).rfind('/') + 1);
  std::string chain;
  char line[4096];
  while (std::fgets(line, sizeof line, pipe)) {
    const char* slash = std::strrchr(line, '/');
    std::string place = slash ? slash + 1 : line;
    if (own.compare(0, own.npos, line, std::strlen(line) - place.size()) == 0) continue;
    place.erase(place.find_first_of(" \n"));  // " (discriminator 3)"
    chain += (chain.empty() ? "" : " in ") + place;
  }
  pclose(pipe);
  return chain.empty() ? unknown : chain;
}

}  // namespace simt
