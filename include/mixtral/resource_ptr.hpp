// Owning pointer to an object in a host-given memory resource.
#ifndef MIXTRAL_RESOURCE_PTR_HPP_
#define MIXTRAL_RESOURCE_PTR_HPP_

#include <memory>
#include <memory_resource>
#include <utility>

#include "mixtral/impl/compiler.hpp"

namespace mixtral::detail {

template <class T>
struct ResourceDelete {
  std::pmr::memory_resource* resource = nullptr;

  void operator()(T* object) const noexcept {
    object->~T();
    resource->deallocate(object, sizeof(T), alignof(T));
  }
};

template <class T>
using ResourcePtr = std::unique_ptr<T, ResourceDelete<T>>;

template <class T, class... Arguments>
ResourcePtr<T> make_resource_ptr(std::pmr::memory_resource* resource, Arguments&&... arguments) {
  // Gives the memory back if the constructor throws.
  struct Memory {
    std::pmr::memory_resource* resource;
    void* place;
    ~Memory() {
      if (place != nullptr) resource->deallocate(place, sizeof(T), alignof(T));
    }
  } memory{resource, resource->allocate(sizeof(T), alignof(T))};
  T* object = new (memory.place) T(std::forward<Arguments>(arguments)...);
  memory.place = nullptr;
  return ResourcePtr<T>(object, ResourceDelete<T>{resource});
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_RESOURCE_PTR_HPP_
