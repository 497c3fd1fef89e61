package flexcoreplugin

import (
	"fmt"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
)

// caught does an author's work. A panic of it is a failure, and a line of the log: the failure is
// without the panic's text, which may have anything in it.
func caught(log func() hclog.Logger, work func() error) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			log().Error(fmt.Sprintf("the plugin's code panicked: %v", panicked), "stack", string(debug.Stack()))
			err = Fail("panicked", "the plugin's code panicked; its log says where")
		}
	}()
	return work()
}
