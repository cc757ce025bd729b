// A reader for the JSON of model files: objects, arrays, strings, numbers, true, false, null.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace dyncp {

struct Json {
  enum class Kind { null, boolean, number, string, array, object };
  Kind kind = Kind::null;
  bool boolean = false;
  double number = 0;
  std::string string;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  // The member of that name, or null when there is none or this is no object.
  const Json* find(const std::string& name) const;
};

// Throws std::invalid_argument when the text is not one JSON value, repeats a key, or nests too deeply.
Json parse_json(const char* begin, const char* end);

}  // namespace dyncp
