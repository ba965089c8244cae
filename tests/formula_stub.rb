# Stands for Homebrew: takes a formula, prints what its service block says, and runs its test block
# with the commands in a directory: formula_stub.rb FORMULA BIN PLACE
require "json"
require "open3"
require "pathname"
require "socket"

FORMULA, BIN, PLACE = ARGV

class Service
  attr_reader :said

  def initialize(formula)
    @formula = formula
    @said = {}
  end

  def opt_bin = Pathname("/opt/homebrew/opt/ringd/bin")
  def var = Pathname("/opt/homebrew/var")

  %i[run keep_alive process_type error_log_path environment_variables].each do |key|
    define_method(key) { |value| @said[key] = value }
  end
end

class Formula
  class << self
    attr_reader :told, :service_block, :test_block

    def [](name) = name
    def service(&block) = @service_block = block
    def test(&block) = @test_block = block

    %i[desc license depends_on].each do |key|
      define_method(key) { |value| (@told ||= {})[key] = value }
    end

    def head(url, **words) = (@told ||= {})[:head] = [url, words]
  end

  def bin = Pathname(BIN)
  def opt_bin = bin
  def testpath = Pathname(PLACE)

  def free_port
    TCPServer.open("127.0.0.1", 0) { |server| server.addr[1] }
  end

  def system(*words)
    output, status = Open3.capture2e(*words.map(&:to_s))
    raise "#{words}: #{output}" unless status.success?
  end

  def shell_output(words)
    output, status = Open3.capture2e(words)
    raise "#{words}: #{output}" unless status.success?
    output
  end

  def assert_match(expected, actual)
    raise "no #{expected} in #{actual}" unless actual.include?(expected)
  end
end

load FORMULA
service = Service.new(Ringd)
service.instance_eval(&Ringd.service_block)
Ringd.new.instance_eval(&Ringd.test_block)
puts JSON.generate(told: Ringd.told, service: service.said, caveats: Ringd.new.caveats)
