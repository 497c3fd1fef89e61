package main

import (
	"errors"
	"testing"

	"flexcoreplugin"
	"flexcoreplugin/flexcoreplugintest"
)

func TestItGreetsAsConfigured(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	if err := plugin.Configure(Settings{Greeting: "Good day"}); err != nil {
		t.Fatal(err)
	}
	var greeted Greeted
	if err := plugin.Call("greet", Greeting{Name: " Ada "}, &greeted); err != nil {
		t.Fatal(err)
	}
	if greeted.Text != "Good day, Ada!" {
		t.Errorf("it says %q", greeted.Text)
	}
	plugin.UntilLogged("greeting")
}

func TestItGreetsWithoutAConfigurationButNotWithoutAName(t *testing.T) {
	plugin := flexcoreplugintest.Start(t)
	var greeted Greeted
	if err := plugin.Call("greet", Greeting{Name: "Ada"}, &greeted); err != nil || greeted.Text != "Hello, Ada!" {
		t.Errorf("it says %q: %v", greeted.Text, err)
	}
	var failure *flexcoreplugin.Failure
	err := plugin.Call("greet", Greeting{Name: " "}, nil)
	if !errors.As(err, &failure) || failure.Code != "no_name" {
		t.Errorf("nobody is greeted: %v", err)
	}
}

func TestItIsAPlugin(t *testing.T) {
	flexcoreplugintest.Conforms(t)
}
