// Where the encoder ends: from the last layer's output to logits.
#pragma once

#include "model.h"
#include "pool.h"

namespace sparselane {

// Writes logits [logit_rows][labels] from `tiles` tiles of the workspace's x; overwrites the workspace's context.
void apply_head(Model& model, Pool::Lease& lease, int tiles, float* logits);

}  // namespace sparselane
