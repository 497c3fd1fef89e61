// A plugin of FlexCore.
package main

import (
	"context"
	"strings"

	"flexcoreplugin"
)

func main() {
	flexcoreplugin.Run(flexcoreplugin.Plugin{
		Name:          "greeter",
		Version:       "0.1.0",
		Summary:       "Greets people.",
		Configuration: flexcoreplugin.Settings[Settings](flexcoreplugin.SchemaOf[Settings]()),
		Functions: []flexcoreplugin.Function{{
			Name:         "greet",
			Summary:      "Greets somebody.",
			InputSchema:  flexcoreplugin.SchemaOf[Greeting](),
			OutputSchema: flexcoreplugin.SchemaOf[Greeted](),
			Idempotent:   true,
			Run:          flexcoreplugin.Typed(greet),
		}},
	})
}

// Settings is what a tenant configures. A field with the tag secret:"true" is never shown again.
type Settings struct {
	Greeting string `json:"greeting" description:"What stands before the name."`
}

// Greeting is who is to be greeted.
type Greeting struct {
	Name string `json:"name"`
}

// Greeted is what was said.
type Greeted struct {
	Text string `json:"text"`
}

func greet(_ context.Context, call *flexcoreplugin.Call, input Greeting) (Greeted, error) {
	name := strings.TrimSpace(input.Name)
	if name == "" {
		return Greeted{}, flexcoreplugin.Fail("no_name", "Nobody can be greeted without a name.")
	}
	call.Log().Info("greeting", "name", name)
	// It greets for tenants that have configured nothing, too.
	greeting := "Hello"
	if settings, err := flexcoreplugin.Configured[Settings](call); err == nil {
		greeting = settings.Greeting
	}
	return Greeted{Text: greeting + ", " + name + "!"}, nil
}
