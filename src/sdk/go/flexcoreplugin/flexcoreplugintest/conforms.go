package flexcoreplugintest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The variables that name FlexCore's executable, and the plugin's if it has been built.
const (
	flexcoreVariable = "FLEXCORE"
	pluginVariable   = "PLUGIN"
)

// Build builds the plugin whose test runs, and returns the path of its executable. With the variable
// PLUGIN it is that file, which has been built before.
func Build(t testing.TB) string {
	t.Helper()
	if built := os.Getenv(pluginVariable); built != "" {
		return absolute(t, built)
	}
	built := filepath.Join(t.TempDir(), "plugin")
	command := exec.Command("go", "build", "-o", built, ".")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, said)
	}
	return built
}

// Conforms builds the plugin, and holds it to what every plugin has to do: describe itself, refuse what
// the contract does not allow, and end when it is told to; with TLS and without. It is called with what
// is no JSON alone, so that its functions do nothing. The options are those of `flexcore plugin check`.
func Conforms(t testing.TB, options ...string) {
	t.Helper()
	arguments := append([]string{"plugin", "check", Build(t)}, options...)
	said, err := exec.Command(flexcore(t), arguments...).CombinedOutput()
	if err != nil {
		t.Errorf("flexcore plugin check: %v\n%s", err, said)
	}
}

func flexcore(t testing.TB) string {
	t.Helper()
	if named := os.Getenv(flexcoreVariable); named != "" {
		return absolute(t, named)
	}
	found, err := exec.LookPath("flexcore")
	if err != nil {
		t.Fatalf("there is no flexcore in PATH: set %s to the executable", flexcoreVariable)
	}
	return found
}

func absolute(t testing.TB, path string) string {
	t.Helper()
	whole, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return whole
}
