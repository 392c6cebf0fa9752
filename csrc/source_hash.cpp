// In a file of its own: it changes with every edit, and where torch's headers are included half a
// minute would go by for it.

#include "source_hash.h"

#include "moge_source_hash.h"  // written by setup.py

namespace moge {

const char* source_hash() { return MOGE_SOURCE_HASH; }

}  // namespace moge
