module plugins/greeter

go 1.19

require flexcoreplugin v0.0.0

replace flexcoreplugin => ./flexcoreplugin
