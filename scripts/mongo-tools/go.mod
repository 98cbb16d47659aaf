// The pin for scripts/install-mongo-tools: MongoDB's tools 100.14.1, and in go.sum what all of it hashes to.
module drkit.test/mongo-tools

go 1.25.5

require github.com/mongodb/mongo-tools v0.0.0-20260129190313-c37ea81e07ba
