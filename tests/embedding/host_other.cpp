#include "host.hpp"

mixtral::Result<mixtral::Model> open_model(const char* path) { return mixtral::Model::open(path); }

mixtral::SessionOptions too_long(const mixtral::Model& model) {
  mixtral::SessionOptions options;
  options.context = model.config().context_length + 1;
  return options;
}
