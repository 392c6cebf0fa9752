// The digest of the sources that were compiled, by which a build is told from another.
#pragma once

namespace moge {

const char* source_hash();

}  // namespace moge
