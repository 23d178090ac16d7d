// Where the encoder begins: from token ids to the sums of their embeddings.
#pragma once

#include "batch.h"
#include "model.h"

namespace sparselane {

// Fetches the rows of the batch's words from the file, where they lie there.
void read_words(Model& model, const Batch& batch);

// Writes tiles [first, first + count) of the workspace's x; lanes of no token become 0.
void embed(Model& model, const Batch& batch, int first, int count);

}  // namespace sparselane
