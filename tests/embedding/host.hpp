#include <mixtral/mixtral.hpp>

mixtral::Result<mixtral::Model> open_model(const char* path);
mixtral::SessionOptions too_long(const mixtral::Model& model);
