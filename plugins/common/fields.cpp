#include "fields.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "report.h"

namespace tokenrt::plugin {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

bool is_single(Kind kind) {
    return kind != Kind::kList;
}

// Nothing says that what an engine holds is aligned.
template <typename T>
T item(const PluginField& from, int i) {
    T number;
    std::memcpy(&number, static_cast<const char*>(from.data) + static_cast<std::size_t>(i) * sizeof number,
                sizeof number);
    return number;
}

PluginFieldType type_of(Kind kind) {
    return kind == Kind::kFloat ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32;
}

}  // namespace

Values::Values(const std::vector<Field>& fields, const nvinfer1::PluginFieldCollection* given) {
    for (const Field& field : fields) {
        values_.push_back({field, false, {}, 0});
    }
    const int count = given != nullptr && given->fields != nullptr ? given->nbFields : 0;
    for (int i = 0; i < count; ++i) {
        const PluginField& from = given->fields[i];
        const char* const name = from.name != nullptr ? from.name : "";
        Value* known = nullptr;
        for (Value& value : values_) {
            known = std::strcmp(value.field.name, name) == 0 ? &value : known;
        }
        if (known == nullptr) {
            refuse("unknown field '", name, "'");
        }
        if (known->given) {
            refuse("field '", name, "' is given twice");
        }
        read(*known, from);
    }
    for (const Value& value : values_) {
        if (!value.given && value.field.kind != Kind::kList) {
            refuse("field '", value.field.name, "' is missing");
        }
    }
}

// Parsers give int32; the 64-bit integers of ONNX are taken too where they fit.
void Values::read(Value& value, const PluginField& from) {
    const Field& field = value.field;
    if (from.length < 0 || (is_single(field.kind) && from.length != 1)) {
        refuse("field '", field.name, "' takes ", is_single(field.kind) ? "one number" : "a list", ", got ",
               from.length);
    }
    if (from.data == nullptr && from.length > 0) {
        refuse("field '", field.name, "' has no data");
    }
    if (field.kind == Kind::kFloat) {
        if (from.type != PluginFieldType::kFLOAT32) {
            refuse("field '", field.name, "' must be float32, got plugin field type ",
                   static_cast<int>(from.type));
        }
        value.real = item<float>(from, 0);
        if (!std::isfinite(value.real)) {
            refuse("field '", field.name, "' must be finite, got ", value.real);
        }
        if (field.least < field.most && !(value.real >= field.least && value.real <= field.most)) {
            refuse("field '", field.name, "' must be ", field.least, " to ", field.most, ", got ",
                   value.real);
        }
    } else {
        const bool wide = from.type == PluginFieldType::kINT64;
        if (!wide && from.type != PluginFieldType::kINT32) {
            refuse("field '", field.name, "' must be int32 or int64, got plugin field type ",
                   static_cast<int>(from.type));
        }
        for (int i = 0; i < from.length; ++i) {
            const std::int64_t number = wide ? item<std::int64_t>(from, i) : item<std::int32_t>(from, i);
            if (number < field.least || number > field.most) {
                refuse("field '", field.name, "' must be ", field.least, " to ", field.most, ", got ",
                       number);
            }
            value.numbers.push_back(static_cast<std::int32_t>(number));
        }
    }
    value.given = true;
}

const Values::Value& Values::find(const char* name) const {
    for (const Value& value : values_) {
        if (std::strcmp(value.field.name, name) == 0) {
            return value;
        }
    }
    refuse("no field '", name, "' is declared");
}

int Values::number(const char* name) const {
    return find(name).numbers.at(0);
}
float Values::real(const char* name) const {
    return find(name).real;
}
const std::vector<std::int32_t>& Values::list(const char* name) const {
    return find(name).numbers;
}

std::vector<PluginField> Values::written() const {
    std::vector<PluginField> fields;
    for (const Value& value : values_) {
        const bool real = value.field.kind == Kind::kFloat;
        if (!real && value.numbers.empty()) {
            continue;
        }
        fields.emplace_back(value.field.name,
                            real ? static_cast<const void*>(&value.real) : value.numbers.data(),
                            type_of(value.field.kind), real ? 1 : static_cast<int>(value.numbers.size()));
    }
    return fields;
}

std::string Values::text() const {
    std::ostringstream text;
    text.precision(std::numeric_limits<float>::max_digits10);
    for (const Value& value : values_) {
        text << (&value == values_.data() ? "" : " ") << value.field.name << "=";
        if (value.field.kind == Kind::kFloat) {
            text << value.real;
        } else if (is_single(value.field.kind)) {
            text << value.numbers[0];
        } else {
            text << "[" << value.numbers.size() << "]";
        }
    }
    return text.str();
}

std::vector<PluginField> described(const std::vector<Field>& fields) {
    std::vector<PluginField> shown;
    for (const Field& field : fields) {
        shown.emplace_back(field.name, nullptr, type_of(field.kind), is_single(field.kind) ? 1 : 0);
    }
    return shown;
}

}  // namespace tokenrt::plugin
