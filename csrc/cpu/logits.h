// Scaled similarities of images and classes, reduced row by row; the matrix of logits is never stored.
#pragma once
#include <cstdint>

#include "cpu/logits_dots.h"

namespace vlcal {

struct SoftmaxOutputs {
  int64_t* predicted;     // [N]
  float* confidence;      // [N]
  float* entropy;         // [N], nats
  float* log_likelihood;  // [N], written with labels only
  float* sum_squares;     // [N]
  int64_t* topk_index;    // [N, k]
  float* topk_prob;       // [N, k]
};

// Softmax of scale * image . class * row_scale[image] * predicted_scale[argmax of the row]; row_scale, predicted_scale
// and labels may be null. Returns the first image whose features are not finite or whose logits may overflow (0 if a
// class is not finite), or -1.
int64_t calibrated_softmax(Features images, Features classes, double scale, const double* row_scale,
                           const double* predicted_scale, const int64_t* labels, int64_t k, SoftmaxOutputs out,
                           int threads);

// Per image the largest logit, its class and the smallest logit; with `other_classes.count` > 0 also the mean over
// classes of |logit - other logit|. Returns as above.
int64_t logit_statistics(Features images, Features classes, double scale, Features other_images,
                         Features other_classes, float* largest, int64_t* argmax, float* smallest, float* difference,
                         int threads);

// losses[i] = -log softmax(scale * image_i . class)[label_i], and the gradients of sum_i weights[i] losses[i] (weights
// null: ones) by images, classes and scale where the pointers are not null. Returns as above.
int64_t cross_entropy(Features images, Features classes, const int64_t* labels, double scale, const double* weights,
                      float* losses, float* image_gradient, float* class_gradient, double* scale_gradient,
                      int threads);

}  // namespace vlcal
