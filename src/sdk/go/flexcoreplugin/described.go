package flexcoreplugin

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"flexcoreplugin/pluginv1"

	"github.com/golang/protobuf/proto"
)

// described is all that the host is told.
func (p *Plugin) described() *pluginv1.Description {
	description := &pluginv1.Description{
		Name: p.Name, Version: p.Version, Summary: p.Summary, Decides: p.Decide != nil,
	}
	if p.Configuration != nil {
		description.ConfigurationSchema = p.Configuration.Schema
	}
	for _, function := range p.Functions {
		description.Functions = append(description.Functions, &pluginv1.Function{
			Name: function.Name, Summary: function.Summary, Idempotent: function.Idempotent,
			InputSchema: function.InputSchema, OutputSchema: function.OutputSchema,
		})
	}
	return description
}

// Check says what is wrong with what the author has said; nil: nothing. Run looks, too.
func (p *Plugin) Check() error {
	if p.Name == "" {
		return fmt.Errorf("the plugin has no name")
	}
	if len(p.Functions) > functionsMax {
		return fmt.Errorf("a plugin with %d functions; at most %d", len(p.Functions), functionsMax)
	}
	names := make(map[string]bool)
	for _, function := range p.Functions {
		name := function.Name
		if !isWord(name) {
			return fmt.Errorf("%q is no name of a function ([a-z][a-z0-9_]{0,39})", name)
		}
		if names[name] {
			return fmt.Errorf("the plugin has two functions called %q", name)
		}
		names[name] = true
		if function.Run == nil {
			return fmt.Errorf("the function %q has no Run", name)
		}
		if err := schema("of the input of "+name, function.InputSchema); err != nil {
			return err
		}
		if err := schema("of the output of "+name, function.OutputSchema); err != nil {
			return err
		}
	}
	if of := p.Configuration; of != nil {
		if of.Make == nil || of.Schema == "" {
			return fmt.Errorf("the configuration needs a Schema and a Make")
		}
		if err := schema("of the configuration", of.Schema); err != nil {
			return err
		}
	}
	return p.checkTexts()
}

func (p *Plugin) checkTexts() error {
	texts := []string{p.Name, p.Version, p.Summary}
	for _, function := range p.Functions {
		texts = append(texts, function.Summary)
	}
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return fmt.Errorf("%q is no UTF-8", text)
		}
	}
	if size := proto.Size(p.described()); size > descriptionBytesMax {
		return fmt.Errorf("a description of %d bytes; at most %d", size, descriptionBytesMax)
	}
	return nil
}

func schema(what, text string) error {
	if text == "" {
		return nil
	}
	first := strings.TrimLeft(text, " \t\r\n")
	if !isJSON([]byte(text)) || !strings.ContainsAny(first[:1], "{tf") {
		return fmt.Errorf("the schema %s is no JSON object", what)
	}
	return nil
}

// SchemaOf is a JSON Schema of what encoding/json writes of a type, and of what it reads into it. A field
// has to be there unless it is a pointer or has `omitempty`. The tag `description:"…"` says what a field
// is, and `secret:"true"` that it is one, in a configuration. It panics where encoding/json can write no
// such type, as a start of the plugin tells at once.
func SchemaOf[T any]() string {
	of := &schemas{within: make(map[reflect.Type]bool), names: make(map[reflect.Type]string)}
	of.definitions = make(map[string]interface{})
	root := of.schema(reflect.TypeOf((*T)(nil)).Elem())
	if len(of.definitions) > 0 {
		root["$defs"] = of.definitions
	}
	text, err := written("schema", root)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// schemas are those of a type and of its parts.
type schemas struct {
	// Structures that are being described, so that one in itself is noticed.
	within map[reflect.Type]bool
	// Names of those that are in themselves: they stand in the definitions.
	names       map[reflect.Type]string
	definitions map[string]interface{}
}

type object = map[string]interface{}

var (
	timeType   = reflect.TypeOf(time.Time{})
	numberType = reflect.TypeOf(json.Number(""))
	jsonWriter = reflect.TypeOf((*json.Marshaler)(nil)).Elem()
	textWriter = reflect.TypeOf((*encoding.TextMarshaler)(nil)).Elem()
)

func (s *schemas) schema(of reflect.Type) object {
	writes := func(by reflect.Type) bool { return of.Implements(by) || reflect.PtrTo(of).Implements(by) }
	switch {
	case of.Kind() == reflect.Ptr:
		return object{"anyOf": []object{s.schema(of.Elem()), {"type": "null"}}}
	case of == timeType:
		return object{"type": "string", "format": "date-time"}
	case of == numberType:
		return object{"type": "number"}
	case of.Kind() == reflect.Interface || writes(jsonWriter):
		return object{}
	case writes(textWriter):
		return object{"type": "string"}
	}
	switch of.Kind() {
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Array:
		length := of.Len()
		return object{"type": "array", "items": s.schema(of.Elem()), "minItems": length, "maxItems": length}
	case reflect.Slice:
		if of.Elem().Kind() == reflect.Uint8 {
			return object{"type": []string{"string", "null"}}
		}
		return object{"type": []string{"array", "null"}, "items": s.schema(of.Elem())}
	case reflect.Map:
		return object{"type": []string{"object", "null"}, "additionalProperties": s.schema(of.Elem())}
	case reflect.Struct:
		return s.structure(of)
	}
	panic(fmt.Sprintf("there is no JSON of the type %s", of))
}

func (s *schemas) structure(of reflect.Type) object {
	if s.within[of] && s.names[of] == "" {
		// That of a generic type has more in it than a reference takes.
		name, _, _ := strings.Cut(of.Name(), "[")
		s.names[of] = fmt.Sprintf("%s%d", name, len(s.names)+1)
	}
	if name := s.names[of]; name != "" {
		return object{"$ref": "#/$defs/" + name}
	}
	s.within[of] = true
	properties, required := object{}, []string{}
	s.fields(of, properties, &required)
	delete(s.within, of)
	schema := object{"type": "object", "properties": properties}
	if len(required) > 0 {
		schema["required"] = required
	}
	name := s.names[of]
	if name == "" {
		return schema
	}
	s.definitions[name] = schema
	return object{"$ref": "#/$defs/" + name}
}

// fields adds those of a structure, and of what is embedded in it: the outer one of a name counts.
func (s *schemas) fields(of reflect.Type, properties object, required *[]string) {
	var embedded []reflect.Type
	for at := 0; at < of.NumField(); at++ {
		field := of.Field(at)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		inner := field.Type
		if field.Anonymous && name == "" {
			if inner.Kind() == reflect.Ptr {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct && inner != of {
				embedded = append(embedded, inner)
				continue
			}
		}
		if !field.IsExported() || field.Tag.Get("json") == "-" {
			continue
		}
		if name == "" {
			name = field.Name
		}
		if properties[name] != nil {
			continue
		}
		properties[name] = s.field(field, options)
		if field.Type.Kind() != reflect.Ptr && !strings.Contains(options, "omitempty") {
			*required = append(*required, name)
		}
	}
	for _, inner := range embedded {
		s.fields(inner, properties, required)
	}
}

func (s *schemas) field(field reflect.StructField, options string) object {
	schema := s.schema(field.Type)
	if strings.Contains(options, "string") {
		schema = object{"type": "string"}
	}
	if text := field.Tag.Get("description"); text != "" {
		schema["description"] = text
	}
	if field.Tag.Get("secret") == "true" {
		schema["writeOnly"] = true
	}
	return schema
}
