# Homebrew's formula. A checkout is a tap of its own:
#     brew tap ringd/ringd /path/to/checkout && brew install --HEAD ringd/ringd/ringd
class Ringd < Formula
  desc "Daemon that keeps a ring of machines together, for collectives on tensors"
  license "MIT"
  head "file://#{Pathname(__FILE__).realpath.parent.parent.parent}", using: :git, branch: "main"

  depends_on "python@3.13"

  def install
    system Formula["python@3.13"].opt_bin/"python3.13", "-m", "venv", libexec
    system libexec/"bin/python", "-m", "pip", "install", "#{buildpath}[bf16,metrics,watch]"
    bin.install_symlink libexec/"bin/ringd", libexec/"bin/ringd-cli"
    system libexec/"bin/python", "packaging/manual.py", buildpath/"manual"
    man1.install "manual/usr/share/man/man1/ringd-cli.1"
    man5.install "manual/usr/share/man/man5/ringd.toml.5"
    man8.install "manual/usr/share/man/man8/ringd.8"
    generate_completions_from_executable(bin/"ringd-cli", "completion")
  end

  def caveats
    <<~EOS
      For a daemon that starts with the machine, with a user of its own, and which macOS lets use the
      local network:
        sudo #{opt_bin}/ringd-cli service install
      `brew services` runs one for you alone, from your login on, with the config in
        ~/Library/Application Support/ringd
    EOS
  end

  # Without options: config, socket and state are in the usual places of whoever runs it, where
  # programs look.
  service do
    run [opt_bin/"ringd"]
    keep_alive successful_exit: false
    process_type :interactive
    error_log_path var/"log/ringd.log"
    environment_variables RINGD_LOG_FILE: var/"log/ringd.log"
  end

  test do
    config = testpath/"ringd.toml"
    system bin/"ringd-cli", "init", config, "--member", "here=127.0.0.1:#{free_port}"
    system bin/"ringd-cli", "keygen", testpath/"ring.key"
    ring = ["--config", config, "--node", "here", "--socket", testpath/"s", "--state-dir", testpath/"state"]
    system bin/"ringd", "--check-config", *ring
    daemon = spawn((bin/"ringd").to_s, *ring.map(&:to_s))
    begin
      health = shell_output("#{bin}/ringd-cli health --wait 20s --socket #{testpath}/s")
      assert_match "here: ready", health
    ensure
      Process.kill "TERM", daemon
      Process.wait daemon
    end
  end
end
