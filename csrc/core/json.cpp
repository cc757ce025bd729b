#include "core/json.h"

#include <cstdlib>
#include <locale>
#include <set>
#include <sstream>
#include <stdexcept>

namespace dyncp {
namespace {

constexpr int kDeepest = 16;

class Parser {
 public:
  Parser(const char* begin, const char* end) : at_(begin), begin_(begin), end_(end) {}

  Json document() {
    Json value = parse_value(0);
    skip_space();
    if (at_ != end_) fail("the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* wanted) const {
    throw std::invalid_argument(std::string("JSON must have ") + wanted + " at character " +
                                std::to_string(at_ - begin_));
  }

  void skip_space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }

  bool take(char c) {
    skip_space();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }

  void expect(const char* word) {
    for (const char* c = word; *c != '\0'; ++c, ++at_) {
      if (at_ == end_ || *at_ != *c) fail(word);
    }
  }

  Json parse_value(int depth) {
    if (depth > kDeepest) fail("less nesting");
    skip_space();
    if (at_ == end_) fail("a value");
    Json value;
    switch (*at_) {
      case '{':
        parse_object(value, depth);
        break;
      case '[':
        ++at_;
        value.kind = Json::Kind::array;
        if (take(']')) break;
        do {
          value.items.push_back(parse_value(depth + 1));
        } while (take(','));
        if (!take(']')) fail("']'");
        break;
      case '"':
        value.kind = Json::Kind::string;
        value.string = parse_string();
        break;
      case 't':
        expect("true");
        value.kind = Json::Kind::boolean;
        value.boolean = true;
        break;
      case 'f':
        expect("false");
        value.kind = Json::Kind::boolean;
        break;
      case 'n':
        expect("null");
        break;
      default:
        parse_number(value);
    }
    return value;
  }

  void parse_object(Json& value, int depth) {
    ++at_;
    value.kind = Json::Kind::object;
    if (take('}')) return;
    std::set<std::string> names;
    do {
      skip_space();
      if (at_ == end_ || *at_ != '"') fail("a key");
      std::string name = parse_string();
      if (!names.insert(name).second) fail("no repeated key");
      if (!take(':')) fail("':'");
      value.members.emplace_back(std::move(name), parse_value(depth + 1));
    } while (take(','));
    if (!take('}')) fail("'}'");
  }

  void parse_number(Json& value) {
    std::string text;
    while (at_ != end_ && text.size() < 40 && std::string("+-.eE0123456789").find(*at_) != std::string::npos) {
      text += *at_++;
    }
    // Whatever the locale of the process takes for a decimal point.
    std::istringstream input(text);
    input.imbue(std::locale::classic());
    value.kind = Json::Kind::number;
    input >> value.number;
    if (input.fail() || input.peek() != std::istringstream::traits_type::eof()) fail("a value");
  }

  std::string parse_string() {
    std::string text;
    for (++at_; at_ != end_ && *at_ != '"'; ++at_) {
      if (static_cast<unsigned char>(*at_) < 0x20) fail("no control character in a string");
      if (*at_ != '\\') {
        text += *at_;
        continue;
      }
      if (++at_ == end_) break;
      const std::string plain = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
      const size_t which = plain.find(*at_);
      if (which != std::string::npos) {
        text += meant[which];
      } else if (*at_ == 'u') {
        append_code_point(text);
      } else {
        fail("a known escape");
      }
    }
    if (at_ == end_) fail("'\"'");
    ++at_;
    return text;
  }

  // A \uXXXX as UTF-8; halves of surrogate pairs stay apart, which no name in a model file needs otherwise.
  void append_code_point(std::string& text) {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i) {
      if (++at_ == end_) fail("four hexadecimal digits");
      const char c = *at_;
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("four hexadecimal digits");
      code = code * 16 + static_cast<unsigned>(digit);
    }
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else if (code < 0x800) {
      text += static_cast<char>(0xc0 | (code >> 6));
      text += static_cast<char>(0x80 | (code & 0x3f));
    } else {
      text += static_cast<char>(0xe0 | (code >> 12));
      text += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
      text += static_cast<char>(0x80 | (code & 0x3f));
    }
  }

  const char *at_, *begin_, *end_;
};

}  // namespace

const Json* Json::find(const std::string& name) const {
  for (const auto& member : members) {
    if (member.first == name) return &member.second;
  }
  return nullptr;
}

Json parse_json(const char* begin, const char* end) { return Parser(begin, end).document(); }

}  // namespace dyncp
