package flexcoreplugin

import "time"

// The limits of the contract, which the host has as well.
const (
	// The version of the contract, which host and plugin agree on when the plugin starts.
	contractVersion = 1
	// Longest name of a function, and longest code of a failure, in bytes.
	wordBytesMax = 40
	// Functions of a plugin.
	functionsMax = 256
	// Largest description of a plugin, in bytes, schemas included.
	descriptionBytesMax = 4 << 20
	// Largest configuration of one tenant, in bytes.
	configurationBytesMax = 1 << 20
	// Largest input of a call, in bytes, and inputs or questions of one batch together.
	inputBytesMax = 4 << 20
	// Largest output of a call, in bytes, and outputs or decisions of one batch together.
	outputBytesMax = 16 << 20
	// Inputs, or questions, of one batch.
	batchItemsMax = 1024
	// What stands around the limited parts of a message, in bytes.
	envelopeBytesMax = 1 << 20
	// Longest message of a failure, in bytes.
	messageBytesMax = 4 << 10
	// Largest details of a failure, in bytes.
	detailsBytesMax = 64 << 10
	// Events of one decision.
	eventsMax = 256
	// Longest name of an event, in bytes.
	eventNameBytesMax = 256
	// Longest time for a call, whatever the caller says.
	callWaitMax = time.Hour
)

// The limits of this side.
const (
	// Most tenants with a configuration. With 1 KiB each it is 64 MiB.
	tenantsMax = 65_536
	// Calls of one stream that are worked on at once, unless the function says another number: they
	// wait for others most of the time.
	callsAtOnce = 16
	// Batches of one stream that are worked on at once.
	batchesAtOnce = 4
	// Longest line of the log, in bytes: a host takes 64 KiB as one.
	lineBytesMax = 60 << 10
	// Longest text in a line that was too long, in bytes.
	textBytesMax = 8 << 10
	// Shortest time between two lines that say how far a call is: a person reads them.
	progressPause = time.Second
	// Longest time that calls under way have to end after SIGTERM: a host kills after 2 s.
	drainWait = 800 * time.Millisecond
)
